"""Published sets, as their authors lay them out on disk, made into the npz files that the configs name.

Camelyon17 of WILDS: metadata.csv and patches/. PatchCamelyon: camelyonpatch_level_2_split_train_x.h5 and …_y.h5.
CelebA: img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curriculumdp.data.arrays import array_rows
from curriculumdp.data.cache import InMemory
from curriculumdp.data.decode import decode
from curriculumdp.data.folders import inside
from curriculumdp.data.images import DataError
from curriculumdp.data.listing import Listing
from curriculumdp.data.pictures import picture_pixels
from curriculumdp.data.pixels import Conversion
from curriculumdp.disk import unfinished

Split = Literal["train", "test"]
CENTER = {"train": {"0", "3", "4"}, "test": {"2"}}  # hospitals of Camelyon17, as WILDS divides them
PARTITION = {
    "train": {"0", "1"},
    "test": {"2"},
}  # CelebA: training and validation images train, as in DP-FETA
Rows = Iterator[tuple[str, int]]


def prepare(
    name: str, folder: Path, out: Path, split: Split, size: int, say: Callable[[str], None] = lambda _: None
) -> str:
    """Write the npz file (images uint8 [N, size, size, 3], labels) and return a line about it. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: give the one that holds the published files")
    listing = LAYOUTS[name](folder.resolve(), split, Conversion(3, size))
    count = len(listing.labels)
    if not count:
        raise DataError(f"{listing.origin}: lists no images of the {split} split: use the published file")
    images = decode(listing, InMemory((count, 3, size, size)), say, lambda: False)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(out)
    try:
        with temporary.open("wb") as file:
            np.savez(file, images=images.transpose(0, 2, 3, 1), labels=listing.labels)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    return f"{out}: {count} images of {size}x{size} pixels; set data.units={count}"


def _pictures(folder: Path, table: Path, rows: Rows, how: Conversion) -> Listing:
    names_and_labels = list(rows)
    files = [inside(folder, Path(name), f"{table}: {name[:200]!r}") for name, _ in names_and_labels]
    labels = np.array([label for _, label in names_and_labels], dtype=np.int64)
    return Listing(
        str(table), labels, None, tuple(files), lambda: lambda row: picture_pixels(files[row], how)
    )


def _camelyon17(folder: Path, split: Split, how: Conversion) -> Listing:
    table = folder / "metadata.csv"

    def rows() -> Rows:
        for where, row in _table(table):
            try:
                patient, node = int(row["patient"]), int(row["node"])
                x, y, label = int(row["x_coord"]), int(row["y_coord"]), int(row["tumor"])
                wanted = row["center"] in CENTER[split] and (split == "test" or row["split"] == "0")
            except (KeyError, TypeError, ValueError):
                raise DataError(
                    f"{where}: is not a row of Camelyon17's metadata.csv: download it anew"
                ) from None
            if wanted:
                slide = f"patient_{patient:03d}_node_{node}"
                yield f"patches/{slide}/patch_{slide}_x_{x}_y_{y}.png", _binary(label, where)

    return _pictures(folder, table, rows(), how)


def _celeba(folder: Path, split: Split, how: Conversion) -> Listing:
    partition = {cells[0]: cells[1] for _, cells in _columns(folder / "list_eval_partition.txt", 2)}
    table = folder / "list_attr_celeba.txt"

    def rows() -> Rows:
        lines = _columns(table, None)
        names = next((cells for _, cells in lines if "Male" in cells), None)
        if names is None:
            raise DataError(f"{table}: has no line of attributes with Male: download it anew")
        for where, cells in lines:
            if len(cells) != len(names) + 1 or cells[names.index("Male") + 1] not in ("1", "-1"):
                raise DataError(f"{where}: must have an image and {len(names)} attributes: download it anew")
            if cells[0] not in partition:
                raise DataError(
                    f"{where}: {cells[0][:60]!r} is not in list_eval_partition.txt: download both anew"
                )
            if partition[cells[0]] in PARTITION[split]:
                yield f"img_align_celeba/{cells[0]}", int(cells[names.index("Male") + 1] == "1")

    return _pictures(folder, table, rows(), how)


def _pcam(folder: Path, split: Split, how: Conversion) -> Listing:
    files = [folder / f"camelyonpatch_level_2_split_{split}_{part}.h5" for part in "xy"]
    images, labels = (_h5(file, part) for file, part in zip(files, "xy", strict=True))
    if images.ndim != 4 or images.shape[3] != 3 or labels.shape != (len(images), 1, 1, 1):
        raise DataError(
            f"{files[0]}: has shape {images.shape}, its labels {labels.shape}: download both anew"
        )
    flat = np.asarray(labels[:, 0, 0, 0]).astype(np.int64)
    for label in np.unique(flat):
        _binary(int(label), str(files[1]))
    return Listing(str(files[0]), flat, None, tuple(files), lambda: array_rows(str(files[0]), images, how))


LAYOUTS: dict[str, Callable[[Path, Split, Conversion], Listing]] = {
    "camelyon17": _camelyon17,
    "celeba": _celeba,
    "pcam": _pcam,
}


def _binary(label: int, where: str) -> int:
    if label not in (0, 1):
        raise DataError(f"{where}: the label is {label} but must be 0 or 1: download the file anew")
    return label


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            for row in reader:
                yield f"{path} line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}): download it anew") from None


def _columns(path: Path, count: int | None) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, cells) of each line, `count` of them where it is given."""
    try:
        with path.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(text, start=1):
                cells = line.split()
                if count is not None and len(cells) != count:
                    raise DataError(f"{path} line {number}: must have {count} columns: download it anew")
                if cells:
                    yield f"{path} line {number}", cells
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): download it anew") from None


def _h5(path: Path, name: str) -> Any:
    """Return an h5 file's array, uint8, read from disk as it is used. Raises DataError."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: reading it needs h5py: run pip install 'curriculumdp[h5]'") from None
    try:
        file = h5py.File(path, "r")
        array = file[name]
        # What it links to may be any other file.
        own = isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(array, h5py.Dataset)
        if not own or array.is_virtual or array.external or array.dtype != np.uint8 or array.ndim != 4:
            raise DataError(f"{path}: {name} must be an array of uint8 in the file itself: download it anew")
        return array
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({str(error)[:120]}): download it anew") from None
