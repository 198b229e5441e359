"""Reader of a folder of pictures, whose labels are sub-folders or stand in a CSV file.

A path may not lead out of the folder, by whatever way; what is not understood is refused by name rather than
passed over: a misspelt `unit` column, ignored, would turn people back into single files.
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
    """One sub-folder a class, in the order of their names; or a CSV file with path,label[,unit]."""
    folder = wanted.path
    if folder is None or not folder.is_dir():
        raise DataError(f"{folder}: data.path must be the folder of the images")
    if wanted.csv is not None:
        files, labels, units = _rows_of_csv(folder.resolve(), wanted.csv)
        also: tuple[Path, ...] = (wanted.csv,)
    else:
        files, labels = _class_folders(folder.resolve(), wanted.classes)
        units, also = None, ()

    twice = next((file for file, times in Counter(files).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: is listed twice: an image has one label and one owner")

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
            f"{folder}: has {len(folders)} sub-folders but data.classes = {classes}: one sub-folder a class "
            "(an empty one for a class without images), or name a table in data.csv"
        )
    files, labels = [], []
    for label, class_folder in enumerate(folders):
        for file in sorted(_entries(class_folder)):
            if file.is_dir() or file.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{file}: is no image ({', '.join(sorted(SUFFIXES))}): take it out of the folder"
                )
            files.append(_inside(folder, file.relative_to(folder), str(file)))
            labels.append(label)
    return files, labels


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden files left out."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _rows_of_csv(folder: Path, table: Path) -> tuple[list[Path], list[int], list[str] | None]:
    """Files, labels and (where the table has that column) unit ids."""
    files, labels, units = [], [], []
    try:
        with table.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if set(columns) not in COLUMNS or len(columns) != len(set(columns)):
                raise DataError(
                    f"{table}: has the columns {columns}: they must be path,label or path,label,unit"
                )
            reader.fieldnames = columns
            for row in reader:
                where = f"{table} line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: has not {len(columns)} fields")
                file = _inside(folder, Path(row["path"]), where)
                files.append(file)
                labels.append(_label(row["label"], where))
                units.append(row.get("unit", "").strip())
                if "unit" in columns and not units[-1]:
                    raise DataError(f"{where}: the unit is empty: every image needs its owner")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a CSV table ({error})") from None
    return files, labels, units if "unit" in columns else None


def _label(text: str, where: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit()):
        raise DataError(f"{where}: the label {text[:40]!r} is not 0, 1, 2, ...")
    return int(text)


def _inside(folder: Path, file: Path, where: str) -> Path:
    """`folder / file` with all links followed; it must lie below `folder` (resolved) and exist."""
    try:
        real = (folder / file).resolve()
        if file.is_absolute() or ".." in file.parts or not real.is_relative_to(folder):
            raise DataError(f"{where}: leads out of the folder {folder}: keep the images in it")
        if not real.is_file():
            raise DataError(f"{where}: there is no file {file}")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a NUL; links in a circle
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: is no usable path ({error})") from None
    return real
