"""The sensitive images, loaded and checked against what the config declares. PRIVATE."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from curriculumdp.config.config import Config, config_from
from curriculumdp.curriculum.preemption import launcher_is_gone, stop_signal
from curriculumdp.data.content import shared_between_units
from curriculumdp.data.decode import Stopped
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.names import listed
from curriculumdp.data.pixels import Conversion
from curriculumdp.data.sources import load_images
from curriculumdp.disk import write_whole
from curriculumdp.world import StoppedByMain, World

REPEATS = "repeats.json"


def load_unless_stopped(config: Config, world: World, cache: Path, pending: Path) -> ImageSet | None:
    """Load the sensitive images (PRIVATE) on every rank; None where SIGTERM came first: what was decoded is kept."""
    stopping = threading.Event()
    with stop_signal(stopping):
        return load_shared(config, world, cache, pending, lambda: stopping.is_set() or launcher_is_gone())


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
    if images is not None and images.class_names is not None and data.class_names is None:
        world.print(
            f"classes named by the data: {listed(images.class_names)}; from the run's start on these names are PUBLIC "
            "and leave with the release; where they are not, rename the classes or declare data.class_names"
        )
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
        class_names=data.class_names,
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
        digest.update(str(array.shape).encode())
        digest.update(array.data)
    return digest.digest()
