"""What a reader of images is asked for, what it finds before it decodes any pixel, and who owns what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from curriculumdp.data.images import DataError


@dataclass(frozen=True)
class Wanted:
    """The images that a config declares. `units` None: a test set, in which each image is its own unit."""

    path: Path | None
    csv: Path | None
    roster: Path | None
    units: int | None
    classes: int
    channels: int
    size: int
    window: tuple[float, float] | None
    split: Literal["train", "test"]


@dataclass(frozen=True)
class Listing:
    """PRIVATE: what a source holds, pixels not yet decoded.

    labels int64 [N]; unit_ids: N integers or strings, or None where an image is a unit; files: all that the
    pixels depend on; pixels: decodes them, uint8 [N, C, size, size]; origin names the source in errors.
    """

    origin: str
    labels: np.ndarray
    unit_ids: Sequence[str] | np.ndarray | None
    files: tuple[Path, ...]
    pixels: Callable[[], np.ndarray]


def check_labels(listing: Listing, classes: int) -> None:
    """Raises DataError unless labels are 0..classes-1; a class without images is no error."""
    if not len(listing.labels):
        raise DataError(f"{listing.origin}: holds no image")
    low, high = int(listing.labels.min()), int(listing.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{listing.origin}: labels reach from {low} to {high} but data.classes = {classes} allows "
            f"0..{classes - 1}: correct the labels or data.classes"
        )


def check_owners(listing: Listing, unit: str) -> None:
    """Raises DataError if `unit` is more than an image but nothing says who owns which: each would be a unit."""
    if unit != "one image" and listing.unit_ids is None:
        raise DataError(
            f"{listing.origin}: data.unit is {unit!r} but the images name no units, so that each would be one of "
            "its own: add the column (csv) or array (npz) of that name, or leave data.unit at 'one image'"
        )


def unit_places(listing: Listing, wanted: Wanted) -> tuple[np.ndarray, int]:
    """The owner of each image, int64 [N], and the number of places, which must be the declared one."""
    count = len(listing.labels)
    if wanted.units is None:
        return np.arange(count, dtype=np.int64), count
    if listing.unit_ids is None:
        if wanted.roster is not None:
            raise DataError(f"{listing.origin}: data.roster is given but the images name no units")
        if count != wanted.units:
            raise DataError(
                f"{listing.origin}: holds {count} images but data.units = {wanted.units}, and without unit "
                "ids each image is a unit: set data.units to the number you may publish, or mend the data"
            )
        return np.arange(count, dtype=np.int64), count
    if wanted.roster is not None:
        return _places_in_roster(listing, wanted.roster, wanted.units), wanted.units
    return _integer_places(listing, wanted.units), wanted.units


def _integer_places(listing: Listing, units: int) -> np.ndarray:
    assert listing.unit_ids is not None
    ids = [str(unit) for unit in listing.unit_ids]
    if not all(unit.isascii() and unit.isdigit() and len(unit) < 19 for unit in ids):
        raise DataError(
            f"{listing.origin}: unit ids are not all 0, 1, 2, ...: name the public file of all ids in "
            "data.roster"
        )
    places = np.array(ids, dtype=np.int64)
    if len(places) and not 0 <= places.min() <= places.max() < units:
        raise DataError(
            f"{listing.origin}: units reach from {places.min()} to {places.max()} but data.units = {units} "
            f"allows 0..{units - 1}: correct them or data.units"
        )
    return places


def _places_in_roster(listing: Listing, roster: Path, units: int) -> np.ndarray:
    """Line i of the roster is unit i. The roster is public, so which id is missing may be said."""
    assert listing.unit_ids is not None
    try:
        lines = [line.strip() for line in roster.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{roster}: cannot read data.roster ({error})") from None
    places = {unit: place for place, unit in enumerate(lines)}
    if "" in places or len(places) != len(lines):
        raise DataError(f"{roster}: data.roster has an empty line or an id twice: one id a line, each once")
    if len(lines) != units:
        raise DataError(
            f"{roster}: data.roster has {len(lines)} ids but data.units = {units}: they must be equal"
        )
    ids = [str(unit).strip() for unit in listing.unit_ids]
    unknown = next((unit for unit in ids if unit not in places), None)
    if unknown is not None:
        raise DataError(f"{listing.origin}: unit {unknown!r} is not in data.roster {roster}")
    return np.array([places[unit] for unit in ids], dtype=np.int64)
