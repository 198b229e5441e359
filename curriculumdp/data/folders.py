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
from curriculumdp.data.names import in_label_order, labels_of_table, natural
from curriculumdp.data.pictures import picture_pixels

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
NEEDED, UNIT = {"path", "label"}, "unit"


def list_image_folder(wanted: Wanted) -> Listing:
    """List a folder with one sub-folder per class, or with a metadata.jsonl, or data.csv's table.

    Sub-folders, and labels that are not numbers, are names of classes: labels follow `wanted.class_names`, else their
    natural order.
    """
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
        listed.class_names,
        listed.notes,
    )


def _list_metadata(wanted: Wanted, folder: Path) -> Listing:
    table = folder / METADATA
    names, records = metadata_rows(table)
    files = [inside(folder, Path(name), f"{table}: {name[:200]!r}") for name in names]
    refuse_repeats(files)
    labels, class_names = records.labels(str(table), wanted.classes, wanted.class_names)
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
    """PRIVATE: files, labels, units where a table names them; `also`: the table; `notes` are for the user."""

    origin: str
    files: list[Path]
    labels: list[int]
    units: list[str] | None
    also: tuple[Path, ...]
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def labelled_files(wanted: Wanted, suffixes: set[str]) -> Labelled:
    """Return the files of a folder, labelled by sub-folder or by data.csv. Raises DataError."""
    folder = wanted.path
    if folder is None or not folder.is_dir():
        raise DataError(f"{folder}: no such folder: data.path must be the folder of the images")
    if wanted.csv is not None:
        files, labels, units, names, unused = _rows_of_csv(folder.resolve(), wanted.csv, wanted)
        also: tuple[Path, ...] = (wanted.csv,)
        notes = (
            (f"{wanted.csv}: columns that are not used: {', '.join(map(repr, unused))}",) if unused else ()
        )
    else:
        files, labels, names = _class_folders(folder.resolve(), wanted, suffixes)
        units, also, notes = None, (), ()
    return Labelled(str(wanted.csv or folder), files, labels, units, also, names, notes)


def refuse_repeats(files: Iterable[object]) -> None:
    """Raise DataError if an image is listed twice: it would have two labels or two owners."""
    twice = next((file for file, times in Counter(files).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: is listed twice: list each image once, with one label and one owner")


def _class_folders(
    folder: Path, wanted: Wanted, suffixes: set[str]
) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return the files, class by class in label order, their labels, and the classes' names."""
    entries = _entries(folder)
    folders = sorted((one for one in entries if one.is_dir()), key=lambda one: natural(one.name))
    named = suffixes - {""}  # a DICOMDIR or a LICENSE is no image
    beside = sorted(one.name for one in entries if one.suffix.lower() in named and not one.is_dir())
    if folders and beside:
        raise DataError(
            f"{folder / beside[0]}: lies beside the classes' folders: move it, and its like, into one or out"
        )
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
            if file.is_dir() or file.suffix.lower() not in suffixes:
                raise DataError(
                    f"{file}: is not an image ({', '.join(sorted(suffixes))}): move it out of the folder"
                )
            # Only a link can lead out, and following each one's path costs more than reading a cache.
            linked = class_folder.is_symlink() or file.is_symlink() or not file.is_file()
            place = inside(folder, file.relative_to(folder), str(file)) if linked else file
            files.append(_once(place, str(file), lines))
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
) -> tuple[list[Path], list[int], list[str] | None, tuple[str, ...] | None, list[str]]:
    """Return the table's files, labels, unit ids (None without a `unit` column), classes' names and unused columns."""
    files: list[Path] = []
    texts: list[str] = []
    units: list[str] = []
    lines: dict[Path, str] = {}
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
                files.append(_once(inside(folder, Path(row["path"]), where), where, lines))
                texts.append(row["label"])
                units.append(row.get("unit", "").strip())
                if "unit" in columns and not units[-1]:
                    raise DataError(f"{where}: the unit is empty: name the owner of every image")
    except UnicodeDecodeError:
        raise DataError(
            f"{table}: cannot be read as a CSV table, as it is not UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a CSV table ({error})") from None
    labels, names = labels_of_table(
        texts, list(lines.values()), wanted.class_names, wanted.classes, str(table)
    )
    return files, labels, units if UNIT in columns else None, names, unused


def _unused(columns: list[str], table: Path) -> list[str]:
    """Return the columns that are neither path, label nor unit.

    Raises DataError if path or label is missing or repeated, and for a named column where there is no `unit`: it may
    be the owner under another name, and without owners each file would silently be its own unit.
    """
    counts = Counter(columns)
    if len(columns) == 1 and (mark := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        raise DataError(f"{table}: its columns are separated by {mark!r}: save it with commas")
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
