"""Reader for a folder of image files, labelled by sub-folder or by a CSV file.

No path may lead out of the folder by any route. Whatever is not understood is refused by name rather than
skipped: ignoring a misspelt `unit` column would silently make each file its own unit.
"""

import csv
from pathlib import Path

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.names import in_label_order, labels_of_table, natural
from curriculumdp.data.pixels import picture_pixels

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
COLUMNS = ({"path", "label"}, {"path", "label", "unit"})


def list_image_folder(wanted: Wanted) -> Listing:
    """List a folder with one sub-folder per class, or a CSV file of path,label[,unit].

    Sub-folders, and labels that are not numbers, are names of classes: labels follow `wanted.class_names`, else their
    natural order.
    """
    folder = wanted.path
    if folder is None or not folder.is_dir():
        raise DataError(f"{folder}: no such folder: data.path must be the folder of the images")
    if wanted.csv is not None:
        files, labels, units, names = _rows_of_csv(folder.resolve(), wanted.csv, wanted)
        also: tuple[Path, ...] = (wanted.csv,)
    else:
        files, labels, names = _class_folders(folder.resolve(), wanted)
        units, also = None, ()

    def pixels() -> np.ndarray:
        images = np.empty((len(files), wanted.channels, wanted.size, wanted.size), dtype=np.uint8)
        for row, file in enumerate(files):
            images[row] = picture_pixels(file, wanted.channels, wanted.size, wanted.window)
        return images

    return Listing(
        str(wanted.csv or folder), np.array(labels, dtype=np.int64), units, (*also, *files), pixels, names
    )


def _class_folders(folder: Path, wanted: Wanted) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return the files, class by class in label order, their labels, and the classes' names."""
    folders = sorted((one for one in _entries(folder) if one.is_dir()), key=lambda one: natural(one.name))
    if len(folders) != wanted.classes and wanted.class_names is None:
        raise DataError(
            f"{folder}: has {len(folders)} sub-folders but data.classes = {wanted.classes}: make one per class "
            "(empty for a class without images), or set data.csv to a table"
        )
    names, places = in_label_order(
        [one.name for one in folders], wanted.class_names, wanted.classes, str(folder)
    )
    files: list[Path] = []
    labels: list[int] = []
    lines: dict[Path, str] = {}
    for label, class_folder in sorted(zip(places, folders, strict=True)):
        for file in sorted(_entries(class_folder), key=lambda one: natural(one.name)):
            if file.is_dir() or file.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{file}: is not an image ({', '.join(sorted(SUFFIXES))}): move it out of the folder"
                )
            files.append(_once(_inside(folder, file.relative_to(folder), str(file)), str(file), lines))
            labels.append(label)
    return files, labels, names


def _once(file: Path, where: str, seen: dict[Path, str]) -> Path:
    """Return `file`, now in `seen` with where it is listed. Raises DataError if it was there."""
    if file in seen:
        raise DataError(
            f"{where}: {file.name} is listed twice (first: {seen[file]}): list each image once, with one label and one "
            "owner"
        )
    seen[file] = where
    return file


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder except hidden ones."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _rows_of_csv(
    folder: Path, table: Path, wanted: Wanted
) -> tuple[list[Path], list[int], list[str] | None, tuple[str, ...] | None]:
    """Return the table's files, labels, unit ids (None without a `unit` column) and the classes' names, if any."""
    files: list[Path] = []
    texts: list[str] = []
    units: list[str] = []
    lines: dict[Path, str] = {}
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
                files.append(_once(_inside(folder, Path(row["path"]), where), where, lines))
                texts.append(row["label"])
                units.append(row.get("unit", "").strip())
                if "unit" in columns and not units[-1]:
                    raise DataError(f"{where}: the unit is empty: name the owner of every image")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a CSV table ({error})") from None
    named = labels_of_table(texts, list(lines.values()), wanted.class_names, wanted.classes, str(table))
    return files, named[0], units if "unit" in columns else None, named[1]


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
