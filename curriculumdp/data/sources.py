"""The image sources: one reader per source, and the checks that apply to all of them.

To add a source, write a reader (a function from `Wanted` to `Listing`) and add it to SOURCES.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from curriculumdp.data.arrays import list_digits, list_idx, list_npz
from curriculumdp.data.cache import cache_key, load_pixels, save_pixels
from curriculumdp.data.folders import list_image_folder
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.listing import Listing, Wanted, check_labels, check_owners, unit_places

__all__ = ["SOURCES", "DataError", "load_images"]

SOURCES: dict[str, Callable[[Wanted], Listing]] = {
    "digits": list_digits,
    "idx": list_idx,
    "npz": list_npz,
    "image_folder": list_image_folder,
}


def load_images(
    *,
    source: str,
    classes: int,
    channels: int,
    size: int,
    units: int | None = None,
    unit: str = "one image",
    path: str | None = None,
    csv: str | None = None,
    roster: str | None = None,
    window: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    split: Literal["train", "test"] = "train",
    cache: Path | None = None,
    pending: Path | None = None,
) -> ImageSet:
    """Return the images of a source, uint8 [N, channels, size, size], checked against what is declared. PRIVATE.

    `units` is the declared number of units, which a training set must match exactly; None for a test set, in
    which each image is its own unit. `unit` says what a unit is: if more than an image, the images must name
    their owners. digits and idx have both splits; for the others, `path` names one set.
    `class_names` lists the classes in label order; where a source names classes itself, they must be the same ones.
    `cache` is a private folder of decoded images; where `pending` is given, images missing from the cache are
    written there instead. Raises DataError, one line.
    """
    if split == "train" and units is None:
        raise DataError("data.units is missing: set it to the number of units in the training set")
    wanted = Wanted(
        _path(path), _path(csv), _path(roster), None if split == "test" else units,
        classes, channels, size, window, split, None if class_names is None else tuple(class_names),
    )  # fmt: skip
    listing = SOURCES[source](wanted)
    check_labels(listing, classes)
    check_owners(listing, unit)
    owners, unit_count = unit_places(listing, wanted)
    pixels = _pixels(listing, wanted, source, cache, pending)
    return ImageSet(pixels, listing.labels, owners, unit_count, listing.class_names)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _pixels(
    listing: Listing, wanted: Wanted, source: str, cache: Path | None, pending: Path | None
) -> np.ndarray:
    if cache is None or not listing.files:
        return listing.pixels()
    shape = (len(listing.labels), wanted.channels, wanted.size, wanted.size)
    settings = asdict(wanted) | {"source": source}
    key = cache_key(listing.files, {name: str(value) for name, value in settings.items()})
    file = cache / f"images-{wanted.split}.npz"
    images = load_pixels(file, key, shape)
    if images is None:
        images = listing.pixels()
        save_pixels((pending or cache) / file.name, key, images)
    return images
