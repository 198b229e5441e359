"""The sensitive images, loaded and checked against what the config declares. PRIVATE."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from curriculumdp.config.config import Config, config_from
from curriculumdp.data.content import shared_between_units
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images
from curriculumdp.disk import write_whole

REPEATS = "repeats.json"


def load_declared(config: Config, cache: Path | None, pending: Path | None = None) -> ImageSet:
    """Load the sensitive images (PRIVATE) and check them against what the config declares.

    Raises DataError.
    """
    data = config.data
    images = load_images(
        source=data.source,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        units=data.units,
        unit=data.unit,
        path=data.path,
        csv=data.csv,
        roster=data.roster,
        window=data.window,
        class_names=data.class_names,
        cache=cache,
        pending=pending,
    )
    if data.unit == "one image" and images.counts.max() > 1:
        raise DataError(
            "data.unit is 'one image', but some units own more than one image: set data.unit to what a unit is, "
            "such as 'all images of one patient'"
        )
    return images


def with_class_names(config: Config, names: Sequence[str] | None) -> Config:
    """Return the config with the classes' names, which are PUBLIC, if it lists none. Raises ConfigError."""
    if names is None or config.data.class_names is not None:
        return config
    values = config.resolved()
    return config_from(values | {"data": values["data"] | {"class_names": list(names)}}, "the classes' names")


def warn_of_repeats(private: Path, config: Config, images: ImageSet) -> None:
    """Warn on the console, without figures, if units share a picture; their number goes to private/repeats.json.

    Whoever is shown by several units is protected less than one unit. That there are such pictures is itself PRIVATE:
    the warning is for the operator's console, like the bar's timings.
    """
    repeated = shared_between_units(images)
    if not repeated:
        return
    write_whole(private / REPEATS, json.dumps({"images_shared_between_units": repeated}).encode())
    shown = (
        f"{repeated} of {len(images.labels)} images" if config.logging.show_private_metrics else "some images"
    )
    print(
        f"warning: {shown} are the same picture as an image of another unit: a person shown in both is protected less "
        f"than one unit; remove the repeats, or name their owners (how many: {private / REPEATS}, private)",
        flush=True,
    )


def content_digest(images: ImageSet) -> bytes:
    """Return the SHA-256 of all images, labels, units and names. PRIVATE: compared between ranks, never stored."""
    digest = hashlib.sha256(json.dumps(images.class_names).encode())
    for array in images.content_arrays().values():
        digest.update(str(array.shape).encode() + array.tobytes())
    return digest.digest()
