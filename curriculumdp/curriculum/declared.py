"""The sensitive images, loaded and checked against what the config declares. PRIVATE."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from curriculumdp.config.config import Config
from curriculumdp.data.decode import Stopped
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.pixels import Conversion
from curriculumdp.data.sources import load_images
from curriculumdp.world import StoppedByMain, World


def load_shared(
    config: Config, world: World, cache: Path, pending: Path, stop: Callable[[], bool]
) -> ImageSet | None:
    """Load the sensitive images (PRIVATE) on every rank; None on every rank if asked to stop before all were decoded.

    Rank 0 decodes into `pending`, then the first rank of every other node that does not see the same disk; the other
    ranks map what their node has. Raises DataError.
    """
    data = config.data
    how = Conversion(data.channels, data.size, data.window, data.fit, data.background, data.to_grey)
    world.print(how.line())
    images: ImageSet | None = None
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    for turn in (world.is_main, first and not world.is_main, not first and not world.is_main):
        stopped, error = False, None
        if turn:
            try:
                images = load_declared(config, cache, pending, world.print, stop)
            except Stopped:
                stopped = True
            except DataError as raised:
                error = raised
        if world.any(error is not None):
            raise error or StoppedByMain("another process cannot read the images")
        if world.any(stopped):
            return None
    return images


def load_declared(
    config: Config,
    cache: Path | None,
    pending: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> ImageSet:
    """Load the sensitive images (PRIVATE) and check them against what the config declares.

    Raises DataError, and Stopped soon after `stop()` is true.
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
        fit=data.fit,
        background=data.background,
        to_grey=data.to_grey,
        part=data.split,
        cache=cache,
        pending=pending,
        say=say,
        stop=stop,
    )
    if data.unit == "one image" and images.counts.max() > 1:
        raise DataError(
            "data.unit is 'one image', but some units own more than one image: set data.unit to what a unit is, "
            "such as 'all images of one patient'"
        )
    return images


def content_digest(images: ImageSet) -> bytes:
    """Return the SHA-256 of all images, labels and units. PRIVATE: compared between ranks, never stored."""
    digest = hashlib.sha256()
    for array in images.content_arrays().values():
        digest.update(str(array.shape).encode())
        digest.update(array.data)
    return digest.digest()
