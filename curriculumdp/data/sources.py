"""The image sources: one reader per source, and the checks that apply to all of them.

To add a source, write a reader (a function from `Wanted` to `Listing`) and add it to SOURCES.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from curriculumdp.data.arrays import list_digits, list_idx, list_medmnist, list_npz
from curriculumdp.data.cache import InMemory, Partial, cache_key, load_pixels
from curriculumdp.data.decode import decode
from curriculumdp.data.dicom import list_dicom
from curriculumdp.data.folders import list_image_folder
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.listing import Listing, Wanted, check_labels, check_owners, unit_places
from curriculumdp.data.parquet import list_parquet
from curriculumdp.data.pixels import Conversion, Fit, counted
from curriculumdp.data.tars import list_tars
from curriculumdp.disk import write_whole

__all__ = ["SOURCES", "DataError", "load_images"]

SOURCES: dict[str, Callable[[Wanted], Listing]] = {
    "digits": list_digits,
    "idx": list_idx,
    "npz": list_npz,
    "medmnist": list_medmnist,
    "image_folder": list_image_folder,
    "dicom": list_dicom,
    "parquet": list_parquet,
    "tar": list_tars,
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
    fit: Fit = "crop",
    background: int | tuple[int, int, int] | None = None,
    to_grey: bool = False,
    split: Literal["train", "test"] = "train",
    part: str | None = None,
    cache: Path | None = None,
    pending: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> ImageSet:
    """Return the images of a source, uint8 [N, channels, size, size], checked against what is declared. PRIVATE.

    `units` is the declared number of units, which a training set must match exactly; None for a test set, in
    which each image is its own unit. `unit` says what a unit is: if more than an image, the images must name
    their owners. digits and idx have both splits; `part` names one of a source that holds several (default: as
    `split`); for the others, `path` names one set.
    `class_names` lists the classes in label order; where a source names classes itself, they must be the same ones.
    `cache` is a private folder of decoded images; where `pending` is given, images missing from the cache are
    written there instead. `say` gets lines without counts. Raises DataError, one line, and `decode.Stopped` soon after
    `stop()` is true.
    """
    if split == "train" and units is None:
        raise DataError("data.units is missing: set it to the number of units in the training set")
    how = Conversion(channels, size, window, fit, background, to_grey)
    wanted = Wanted(
        _path(path), _path(csv), _path(roster), None if split == "test" else units, classes, how, split,
        part or split, None if class_names is None else tuple(class_names),
    )  # fmt: skip
    listing = SOURCES[source](wanted)
    check_labels(listing, classes)
    check_owners(listing, unit)
    owners, unit_count = unit_places(listing, wanted)
    for note in listing.notes:
        say(note)
    shape = (len(listing.labels), channels, size, size)
    if cache is None or not listing.files:
        images = decode(listing, InMemory(shape), say, stop)
    else:
        settings = {name: str(value) for name, value in (asdict(wanted) | {"source": source}).items()}
        del settings[
            "class_names"
        ]  # they change the labels alone, and are known only from the second start on
        places = [folder / f"images-{split}" for folder in (pending, cache) if folder is not None]
        images = _cached(listing, places, cache_key(listing.files, settings), shape, say, stop)
    return ImageSet(images, listing.labels, owners, unit_count, listing.class_names)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _cached(
    listing: Listing,
    places: list[Path],
    key: str,
    shape: tuple[int, ...],
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> np.ndarray:
    """Return the images from the first of `places` that has them, or decode them to the first."""
    for place in places:
        if (images := load_pixels(place, key, shape)) is not None:
            return images
    try:
        partial = Partial(places[0], key, shape)
    except BlockingIOError:  # a process on another node, which sees the files under other names
        return decode(listing, InMemory(shape), say, stop)
    with closing(partial):
        images = decode(listing, partial, say, stop)
        write_whole(
            places[0].with_name(f"{places[0].name}.json"), json.dumps(counted(partial.facts)).encode()
        )
    return images
