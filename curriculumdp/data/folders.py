"""Reader for a folder of image files, labelled by sub-folder or by a CSV file.

No path may lead out of the folder by any route. Whatever is not understood is refused by name rather than
skipped: ignoring a misspelt `unit` column would silently make each file its own unit.
"""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.metadata import METADATA, metadata_rows
from curriculumdp.data.pictures import picture_pixels

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
NEEDED, UNIT = {"path", "label"}, "unit"


def list_image_folder(wanted: Wanted) -> Listing:
    """List a folder with one sub-folder per class, in name order, or with a metadata.jsonl, or data.csv's table."""
    if wanted.csv is None and wanted.path is not None and (wanted.path / METADATA).is_file():
        return _list_metadata(wanted, wanted.path.resolve())
    listed = labelled_files(wanted, SUFFIXES)
    files = listed.files
    return Listing(
        listed.origin,
        np.array(listed.labels, dtype=np.int64),
        listed.units,
        (*listed.also, *files),
        lambda: lambda row: picture_pixels(files[row], wanted.how),
        notes=listed.notes,
    )


def _list_metadata(wanted: Wanted, folder: Path) -> Listing:
    table = folder / METADATA
    names, records = metadata_rows(table)
    files = [inside(folder, Path(name), f"{table}: {name[:200]!r}") for name in names]
    refuse_repeats(files)
    labels, class_names = records.labels(str(table), wanted.classes)
    return Listing(
        str(table),
        labels,
        records.units(str(table)),
        (table, *files),
        lambda: lambda row: picture_pixels(files[row], wanted.how),
        class_names=class_names,
        notes=records.notes(str(table)),
    )


class Labelled(NamedTuple):
    """PRIVATE: files, labels and, where a table names them, units; `also`: the table; `notes` are for the user."""

    origin: str
    files: list[Path]
    labels: list[int]
    units: list[str] | None
    also: tuple[Path, ...]
    notes: tuple[str, ...]


def labelled_files(wanted: Wanted, suffixes: set[str]) -> Labelled:
    """Return the files of a folder, labelled by sub-folder or by data.csv. Raises DataError."""
    folder = wanted.path
    if folder is None or not folder.is_dir():
        raise DataError(f"{folder}: no such folder: data.path must be the folder of the images")
    if wanted.csv is not None:
        files, labels, units, unused = _rows_of_csv(folder.resolve(), wanted.csv)
        also: tuple[Path, ...] = (wanted.csv,)
        notes = (
            (f"{wanted.csv}: columns that are not used: {', '.join(map(repr, unused))}",) if unused else ()
        )
    else:
        files, labels = _class_folders(folder.resolve(), wanted.classes, suffixes)
        units, also, notes = None, (), ()
    refuse_repeats(files)
    return Labelled(str(wanted.csv or folder), files, labels, units, also, notes)


def refuse_repeats(files: Iterable[object]) -> None:
    """Raise DataError if an image is listed twice: it would have two labels or two owners."""
    twice = next((file for file, times in Counter(files).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: is listed twice: list each image once, with one label and one owner")


def _class_folders(folder: Path, classes: int, suffixes: set[str]) -> tuple[list[Path], list[int]]:
    folders = sorted(entry for entry in _entries(folder) if entry.is_dir())
    if len(folders) != classes:
        raise DataError(
            f"{folder}: has {len(folders)} sub-folders but data.classes = {classes}: make one per class "
            "(empty for a class without images), or set data.csv to a table"
        )
    files, labels = [], []
    for label, class_folder in enumerate(folders):
        for file in sorted(_entries(class_folder)):
            if file.is_dir() or file.suffix.lower() not in suffixes:
                raise DataError(
                    f"{file}: is not an image ({', '.join(sorted(suffixes))}): move it out of the folder"
                )
            # Only a link can lead out, and following each one's path costs more than reading a cache.
            linked = class_folder.is_symlink() or file.is_symlink() or not file.is_file()
            files.append(inside(folder, file.relative_to(folder), str(file)) if linked else file)
            labels.append(label)
    return files, labels


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder except hidden ones."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _rows_of_csv(folder: Path, table: Path) -> tuple[list[Path], list[int], list[str] | None, list[str]]:
    """Return the table's files, labels, unit ids if it has a `unit` column (else None), and the unused columns."""
    files, labels, units = [], [], []
    try:
        with table.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            unused = _unused(columns, table)
            reader.fieldnames = columns
            for row in reader:
                where = f"{table} line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: must have {len(columns)} fields")
                file = inside(folder, Path(row["path"]), where)
                files.append(file)
                labels.append(_label(row["label"], where))
                units.append(row.get("unit", "").strip())
                if "unit" in columns and not units[-1]:
                    raise DataError(f"{where}: the unit is empty: name the owner of every image")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a CSV table ({error})") from None
    return files, labels, units if UNIT in columns else None, unused


def _unused(columns: list[str], table: Path) -> list[str]:
    """Return the columns that are neither path, label nor unit.

    Raises DataError if path or label is missing or repeated, and for a named column where there is no `unit`: it may
    be the owner under another name, and without owners each file would silently be its own unit.
    """
    counts = Counter(columns)
    if not counts.keys() >= NEEDED or any(counts[name] > 1 for name in (*NEEDED, UNIT)):
        raise DataError(
            f"{table}: has columns {columns} but they must be path,label or path,label,unit, each once"
        )
    unused = [name for name in counts if name not in NEEDED | {UNIT}]
    if UNIT not in counts and any(unused):
        raise DataError(
            f"{table}: has columns {columns}, none of them `unit`: rename the one that names each image's owner to "
            "unit, or remove those beside path,label"
        )
    return unused


def _label(text: str, where: str) -> int:
    if not (
        text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 19
    ):  # int64 holds 18 digits
        raise DataError(f"{where}: label {text[:40]!r} must be one of 0, 1, 2, ...")
    return int(text)


def inside(folder: Path, file: Path, where: str) -> Path:
    """Return `folder / file` with links resolved. Raises DataError unless it exists below `folder` (resolved)."""
    try:
        real = (folder / file).resolve()
        if ".." in file.parts or not real.is_relative_to(folder):
            raise DataError(f"{where}: is outside the folder {folder}: move the image into it")
        if not real.is_file():
            raise DataError(f"{where}: no such file: {file}")
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a name that is too long or has a NUL; a loop of links
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: is not a usable path ({error})") from None
    return real
