"""A reader's request, its listing of a source before any pixel is decoded, and checks of labels and owners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.data.pixels import Conversion, Decoded


@dataclass(frozen=True)
class Wanted:
    """The images that a config declares. `units` is None for a test set, where each image is its own unit.

    class_names: the classes in label order, or None: a source that names classes gives their order.
    """

    path: Path | None
    csv: Path | None
    roster: Path | None
    units: int | None
    classes: int
    how: Conversion
    split: Literal["train", "test"]
    part: str = "train"  # the split to read, of a source that holds several
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """PRIVATE: the contents of a source, with pixels not yet decoded.

    origin: the source's name in error messages; labels: int64 [N]; unit_ids: N integers or strings, or None where
    each image is a unit; files: every file that the pixels depend on; opened: opens the source and returns a function
    that decodes one row, from any thread; class_names: PUBLIC, the classes in label order, None for numbers that nobody
    named; notes: lines to show the user, without counts.
    """

    origin: str
    labels: np.ndarray
    unit_ids: Sequence[str] | np.ndarray | None
    files: tuple[Path, ...]
    opened: Callable[[], Callable[[int], Decoded]]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def check_labels(listing: Listing, classes: int) -> None:
    """Raise DataError unless all labels are in 0..classes-1; a class may have no images."""
    if not len(listing.labels):
        raise DataError(f"{listing.origin}: contains no images: add some or correct data.path")
    low, high = int(listing.labels.min()), int(listing.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{listing.origin}: labels range from {low} to {high} but data.classes = {classes} allows "
            f"0..{classes - 1}: correct the labels or data.classes"
        )


def check_owners(listing: Listing, unit: str) -> None:
    """Raise DataError if `unit` is more than an image but no owners are given, since each image would be a unit."""
    if unit != "one image" and listing.unit_ids is None:
        raise DataError(
            f"{listing.origin}: data.unit is {unit!r} but the images name no units, so each image would be its own "
            "unit: add a `unit` column (csv) or `units` array (npz), or leave data.unit at 'one image'"
        )


def unit_places(listing: Listing, wanted: Wanted) -> tuple[np.ndarray, int]:
    """Return each image's unit index, int64 [N], and the number of units. Raises DataError unless it is as declared."""
    count = len(listing.labels)
    if wanted.units is None:
        return np.arange(count, dtype=np.int64), count
    if listing.unit_ids is None:
        if wanted.roster is not None:
            raise DataError(
                f"{listing.origin}: data.roster is set but the images name no units: add unit ids or remove data.roster"
            )
        if count != wanted.units:
            raise DataError(
                f"{listing.origin}: has {count} images but data.units = {wanted.units}, and without unit "
                "ids each image is a unit: set data.units to the number you may publish, or fix the data"
            )
        return np.arange(count, dtype=np.int64), count
    if wanted.roster is not None:
        return _roster_indices(listing, wanted.roster, wanted.units), wanted.units
    return _integer_indices(listing, wanted.units), wanted.units


def _integer_indices(listing: Listing, units: int) -> np.ndarray:
    assert listing.unit_ids is not None
    ids = [str(unit) for unit in listing.unit_ids]
    if not all(unit.isascii() and unit.isdigit() and len(unit) < 19 for unit in ids):
        raise DataError(
            f"{listing.origin}: unit ids are not all 0, 1, 2, ...: set data.roster to the public file of all ids"
        )
    indices = np.array(ids, dtype=np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < units:
        raise DataError(
            f"{listing.origin}: unit ids range from {indices.min()} to {indices.max()} but data.units = {units} "
            f"allows 0..{units - 1}: correct the ids or data.units"
        )
    if (found := len(np.unique(indices))) != units:
        raise DataError(
            f"{listing.origin}: has images of {found} units but data.units = {units}: set data.units to the number of "
            "units in the data; if the others own no image on purpose, list all ids in data.roster"
        )
    return indices


def _roster_indices(listing: Listing, roster: Path, units: int) -> np.ndarray:
    """Return each image's unit index, int64 [N]: line i of the roster is unit i.

    The roster is public, so an error may name an id that is missing from it.
    """
    assert listing.unit_ids is not None
    indices = _roster(roster)
    if len(indices) != units:
        raise DataError(
            f"{roster}: data.roster has {len(indices)} ids but data.units = {units}: make them equal"
        )
    ids = [str(unit).strip() for unit in listing.unit_ids]
    unknown = next((unit for unit in ids if unit not in indices), None)
    if unknown is not None:
        raise DataError(
            f"{listing.origin}: unit {unknown!r} is not in data.roster {roster}: add it there or correct the id"
        )
    return np.array([indices[unit] for unit in ids], dtype=np.int64)


def _roster(roster: Path) -> dict[str, int]:
    """Return each id's line, from 0. Blank lines at the end and a byte order mark count as absent."""
    try:
        text = roster.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError:
        raise DataError(f"{roster}: cannot read data.roster, as it is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{roster}: cannot read data.roster ({error}): correct its path or content") from None
    indices: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        unit = line.strip()
        if not unit:
            raise DataError(f"{roster} line {number}: is empty: data.roster has one id per line")
        if unit in indices:
            raise DataError(
                f"{roster} line {number}: repeats the id {unit!r} of line {indices[unit] + 1}: list each id once"
            )
        indices[unit] = number - 1
    return indices
