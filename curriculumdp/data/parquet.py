"""Reader for parquet files and for Hugging Face data sets saved to disk, through pyarrow (an optional package).

Both are tables with an image column {bytes, path}, a label and perhaps a unit; `datasets` itself is not needed. Only
images whose bytes are in the table are read: a path in a table could name any file of this machine.
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from curriculumdp.data.images import BadImage, DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.pictures import picture_from
from curriculumdp.data.pixels import Decoded
from curriculumdp.data.records import LABEL, UNIT, Records

IMAGES, LABELS = ("image", "img"), (LABEL, "labels")
SPLITS, STATE = "dataset_dict.json", "state.json"


def list_parquet(wanted: Wanted) -> Listing:
    """List a .parquet file, a folder of them, or a data set that `save_to_disk` wrote (the split data.split)."""
    arrow = _pyarrow()
    if wanted.path is None or not wanted.path.exists():
        raise DataError(f"{wanted.path}: no such file or folder: data.path must name the parquet files")
    files = _files(wanted.path, wanted.part)
    origin = str(wanted.path)
    tables = [_table(arrow, file) for file in files]
    image, label = _columns(tables, origin)
    names = _class_names(tables[0].schema, label)
    records = Records()
    for file, table in zip(files, tables, strict=True):
        rows = {LABEL: table[label].to_pylist()} | (
            {UNIT: table[UNIT].to_pylist()} if UNIT in table.schema.names else {}
        )
        for row, values in enumerate(zip(*rows.values(), strict=True)):
            records.add(dict(zip(rows, values, strict=True)), f"{file} row {row}")
    records.unused |= dict.fromkeys(n for n in tables[0].schema.names if n not in (image, label, UNIT))
    labels, names = records.labels(origin, wanted.classes, wanted.class_names, names)
    columns = [table[image] for table in tables]
    return Listing(
        origin,
        labels,
        records.units(origin),
        tuple(files),
        lambda: _opened(files, columns, wanted),
        class_names=names,
        notes=records.notes(origin),
    )


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "data.source is 'parquet', which needs pyarrow: run pip install 'curriculumdp[parquet]'"
        ) from None
    return pyarrow


def _files(path: Path, part: str) -> list[Path]:
    """Return the files of a split: those state.json lists, or all *.parquet whose names begin with the split's."""
    if path.is_file():
        return [path]
    if (path / SPLITS).is_file():
        splits = _json(path / SPLITS).get("splits")
        plain = Path(part).name == part and part not in ("", "..")
        if not isinstance(splits, list) or part not in splits or not plain or not (path / part).is_dir():
            raise DataError(f"{path}: has the splits {splits}: set data.split to one of them, not {part!r}")
        path /= part
    if (path / STATE).is_file():
        listed = _json(path / STATE).get("_data_files")
        names = [entry.get("filename") for entry in listed or () if isinstance(entry, dict)]
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise DataError(
                f"{path / STATE}: does not list the files of a data set saved to disk: save it anew"
            )
        return [path / str(name) for name in names]
    folder = path / "data" if (path / "data").is_dir() else path
    found = sorted(file for file in folder.iterdir() if file.suffix == ".parquet")
    of_split = [file for file in found if file.name == f"{part}.parquet" or file.name.startswith(f"{part}-")]
    if not of_split:
        names = [file.name for file in found[:5]]
        raise DataError(
            f"{folder}: has no files {part}-*.parquet, but {names}: set data.split, or data.path to a file"
        )
    return of_split


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({str(error)[:120]})") from None
    return content if isinstance(content, dict) else {}


def _table(arrow: ModuleType, file: Path) -> Any:
    """Return the file's table, mapped from disk where it is an arrow file. Raises DataError."""
    try:
        if file.suffix == ".parquet":
            table = arrow.parquet.read_table(file, memory_map=True, use_threads=False)
        else:
            with arrow.memory_map(str(file)) as source:
                table = arrow.ipc.open_stream(source).read_all()
        table.validate(full=True)
        return table
    except (OSError, ValueError, MemoryError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{file}: cannot be read as a table of images ({reason}): replace it") from None


def _columns(tables: Sequence[Any], origin: str) -> tuple[str, str]:
    names = tables[0].schema.names
    if any(table.schema.names != names for table in tables) or len(set(names)) != len(names):
        raise DataError(f"{origin}: its files do not have the same columns, each once: write them anew")
    image = [name for name in IMAGES if name in names]
    label = [name for name in LABELS if name in names]
    if len(image) != 1 or len(label) != 1:
        raise DataError(
            f"{origin}: has columns {[name[:40] for name in names[:20]]}: rename the ones with the images and the "
            "labels to image and label, and the one that names each image's owner, if there is one, to unit"
        )
    kinds = {str(table.schema.field(image[0]).type) for table in tables}
    if not all(kind.startswith(("struct<bytes: ", "binary", "large_binary")) for kind in kinds):
        raise DataError(
            f"{origin}: column {image[0]} is {sorted(kinds)[0][:80]} but must hold the bytes of image files"
        )
    return image[0], label[0]


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face's features give to the labels."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _opened(files: list[Path], columns: list[Any], wanted: Wanted) -> Callable[[int], Decoded]:
    places = [
        (file, column, row) for file, column in zip(files, columns, strict=True) for row in range(len(column))
    ]

    def decoded(row: int) -> Decoded:
        file, column, place = places[row]
        name = f"{file} row {place}"
        try:
            value = column[place].as_py()
        except ValueError as error:  # a path that is no text
            raise BadImage(
                name, f"cannot be read ({' '.join(str(error).split())[:120]}): replace the file"
            ) from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise BadImage(
                name, "holds no image, perhaps only a path to one: save the data set with its images in it"
            )
        return picture_from(io.BytesIO(content), name, wanted.how)

    return decoded
