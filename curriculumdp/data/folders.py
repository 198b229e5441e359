"""Reader for a folder of image files, labelled by sub-folder or by a CSV file.

No path may lead out of the folder by any route. Whatever is not understood is refused by name rather than
skipped: ignoring a misspelt `unit` column would silently make each file its own unit.
"""

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.pixels import picture_pixels

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
COLUMNS = ({"path", "label"}, {"path", "label", "unit"})


def list_image_folder(wanted: Wanted) -> Listing:
    """List a folder with one sub-folder per class, in name order, or a CSV file of path,label[,unit]."""
    folder = wanted.path
    if folder is None or not folder.is_dir():
        raise DataError(f"{folder}: no such folder: data.path must be the folder of the images")
    if wanted.csv is not None:
        files, labels, units = _rows_of_csv(folder.resolve(), wanted.csv)
        also: tuple[Path, ...] = (wanted.csv,)
    else:
        files, labels = _class_folders(folder.resolve(), wanted.classes)
        units, also = None, ()

    twice = next((file for file, times in Counter(files).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: is listed twice: list each image once, with one label and one owner")

    def pixels() -> np.ndarray:
        images = np.empty((len(files), wanted.channels, wanted.size, wanted.size), dtype=np.uint8)
        for row, file in enumerate(files):
            images[row] = picture_pixels(file, wanted.channels, wanted.size, wanted.window)
        return images

    return Listing(
        str(wanted.csv or folder), np.array(labels, dtype=np.int64), units, (*also, *files), pixels
    )


def _class_folders(folder: Path, classes: int) -> tuple[list[Path], list[int]]:
    folders = sorted(entry for entry in _entries(folder) if entry.is_dir())
    if len(folders) != classes:
        raise DataError(
            f"{folder}: has {len(folders)} sub-folders but data.classes = {classes}: make one per class "
            "(empty for a class without images), or set data.csv to a table"
        )
    files, labels = [], []
    for label, class_folder in enumerate(folders):
        for file in sorted(_entries(class_folder)):
            if file.is_dir() or file.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{file}: is not an image ({', '.join(sorted(SUFFIXES))}): move it out of the folder"
                )
            files.append(_inside(folder, file.relative_to(folder), str(file)))
            labels.append(label)
    return files, labels


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder except hidden ones."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _rows_of_csv(folder: Path, table: Path) -> tuple[list[Path], list[int], list[str] | None]:
    """Return the table's files, labels and, if it has a `unit` column, unit ids (else None)."""
    files, labels, units = [], [], []
    try:
        with table.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if set(columns) not in COLUMNS or len(columns) != len(set(columns)):
                raise DataError(
                    f"{table}: has columns {columns} but they must be path,label or path,label,unit"
                )
            reader.fieldnames = columns
            for row in reader:
                where = f"{table} line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: must have {len(columns)} fields")
                file = _inside(folder, Path(row["path"]), where)
                files.append(file)
                labels.append(_label(row["label"], where))
                units.append(row.get("unit", "").strip())
                if "unit" in columns and not units[-1]:
                    raise DataError(f"{where}: the unit is empty: name the owner of every image")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a CSV table ({error})") from None
    return files, labels, units if "unit" in columns else None


def _label(text: str, where: str) -> int:
    if not (
        text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 19
    ):  # int64 holds 18 digits
        raise DataError(f"{where}: label {text[:40]!r} must be one of 0, 1, 2, ...")
    return int(text)


def _inside(folder: Path, file: Path, where: str) -> Path:
    """Return `folder / file` with links resolved. Raises DataError unless it exists below `folder` (resolved)."""
    try:
        real = (folder / file).resolve()
        if file.is_absolute() or ".." in file.parts or not real.is_relative_to(folder):
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
