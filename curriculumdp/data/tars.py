"""Reader for WebDataset's tar files: members KEY.png with KEY.cls or KEY.json; nothing is unpacked to disk.

Images are read at their place in the tar, in any order and from any thread. Links, devices and sparse members are
refused by name; a member's name is only ever a name.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from curriculumdp.data.folders import SUFFIXES
from curriculumdp.data.images import DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.pictures import picture_from
from curriculumdp.data.pixels import Decoded
from curriculumdp.data.records import LABEL, Records

MAX_RECORD = 2**20  # bytes of a member that is no image


class Member(NamedTuple):
    """Where a member's bytes are. `name` is for errors."""

    shard: Path
    start: int
    size: int
    name: str

    def read(self) -> bytes:
        """Return the member's bytes. Raises DataError."""
        try:
            with self.shard.open("rb") as file:
                content = os.pread(file.fileno(), self.size, self.start)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from None
        if len(content) != self.size:
            raise DataError(f"{self.name}: is cut short: replace the file")
        return content


def list_tars(wanted: Wanted) -> Listing:
    """List the images of a tar file, or of all *.tar files in a folder, in the order of their names."""
    shards = _shards(wanted.path)
    origin, images, records = str(wanted.path), [], Records()
    others: dict[str, None] = {}
    seen: set[str] = set()
    for shard in shards:
        for key, parts in _samples(shard):
            where = f"{shard}: {key}"
            if key in seen:
                raise DataError(f"{where}: is in the tar files twice: keep one")
            seen.add(key)
            image, record = _sample(parts, where, others)
            images.append(image)
            records.add(record, where)
    if not images:
        raise DataError(f"{origin}: contains no images: add some or correct data.path")
    units = records.units(origin)
    records.unused |= others
    labels, names = records.labels(origin, wanted.classes, wanted.class_names)
    return Listing(
        origin,
        labels,
        units,
        tuple(shards),
        lambda: _opened(images, wanted),
        class_names=names,
        notes=records.notes(origin),
    )


def _opened(images: list[Member], wanted: Wanted) -> Callable[[int], Decoded]:
    def decoded(row: int) -> Decoded:
        return picture_from(io.BytesIO(images[row].read()), images[row].name, wanted.how)

    return decoded


def _shards(path: Path | None) -> list[Path]:
    if path is not None and path.is_dir():
        shards = sorted(entry for entry in path.iterdir() if entry.suffix == ".tar" and entry.is_file())
    else:
        shards = [path] if path is not None and path.is_file() else []
    if not shards:
        raise DataError(f"{path}: no tar file: data.path must be a .tar file or a folder of them")
    return shards


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield (key, members by extension): consecutive members whose names agree up to the first dot of the last part."""
    key: str | None = None
    parts: dict[str, Member] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                where = f"{shard}: {info.name[:200]}"
                if not info.isreg() or info.issparse():
                    raise DataError(f"{where}: is a link or no plain file: pack the image itself")
                if info.offset_data + info.size > shard.stat().st_size:
                    raise DataError(f"{where}: is cut short: replace the file")
                folder, _, name = info.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if f"{folder}/{stem}" != key:
                    if key is not None:
                        yield key, parts
                    key, parts = f"{folder}/{stem}", {}
                if extension.lower() in parts:
                    raise DataError(f"{where}: is in the tar file twice: keep one")
                parts[extension.lower()] = Member(shard, info.offset_data, info.size, where)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{shard}: cannot be read as a tar file ({' '.join(str(error).split())[:120]}): unpack it if it is "
            "compressed, else replace it"
        ) from None
    if key is not None:
        yield key, parts


def _sample(parts: dict[str, Member], where: str, others: dict[str, None]) -> tuple[Member, dict[str, Any]]:
    """Return a sample's image and its record, of .json and .cls. Raises DataError."""
    images = [part for extension, part in parts.items() if f".{extension}" in SUFFIXES]
    if len(images) != 1:
        raise DataError(
            f"{where}: has {len(images)} images but must have one ({', '.join(sorted(SUFFIXES))})"
        )
    record = _json(parts["json"]) if "json" in parts else {}
    if "cls" in parts:
        label = _text(parts["cls"]).strip()
        label_or_name: int | str = (
            int(label) if label.isascii() and label.isdigit() and len(label) < 19 else label
        )
        if record.get(LABEL, label_or_name) != label_or_name:
            raise DataError(f"{where}: its .cls and .json give different labels: correct one")
        record |= {LABEL: label_or_name}
    others |= dict.fromkeys(
        f".{e}"[:40] for e in parts if f".{e}" not in SUFFIXES and e not in ("json", "cls")
    )
    return images[0], record


def _json(member: Member) -> dict[str, Any]:
    try:
        record = json.loads(_text(member))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{member.name}: is not JSON: replace it") from None
    if not isinstance(record, dict):
        raise DataError(f'{member.name}: must be an object such as {{"label": 0}}')
    return record


def _text(member: Member) -> str:
    if member.size > MAX_RECORD:
        raise DataError(f"{member.name}: has {member.size} bytes, too many for a label: replace it")
    try:
        return member.read().decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{member.name}: is not text in UTF-8: replace it") from None
