"""Test images that the release was trained on: they flatter every figure. Found by content. Counts are PRIVATE."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from curriculumdp.data.content import image_digests
from curriculumdp.data.sources import load_images
from curriculumdp.errors import UserError
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.evaluation.released import Released

# All options of the data that decide its pixels: images that are read otherwise are not recognised.
READ = (
    "source",
    "path",
    "csv",
    "roster",
    "units",
    "unit",
    "classes",
    "channels",
    "size",
    "window",
    "class_names",
    "fit",
    "background",
    "to_grey",
)


def training_set_of(released: Released, say: Callable[[str], None]) -> LabelledSet | None:
    """Return the images that the run beside a release was trained on, or None, with the reason said. PRIVATE.

    A release alone does not say where they are; its run's private config does.
    """
    private = released.folder.resolve().parent / "private"
    if not (private / "config.json").is_file():
        return None
    try:
        data = json.loads((private / "config.json").read_text(encoding="utf-8"))["data"]
        # As the run gave them: else its images would be read otherwise, and its cache made anew.
        asked = {key: _as_given(data[key]) for key in READ if data.get(key) is not None}
        found = load_images(**asked, part=data.get("split"), cache=private / "cache")
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"not checked whether test images were trained on: the run's own set cannot be read ({error})")
        return None
    return LabelledSet(found.images, found.labels, "the run's own training set")


def _as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def training_images(
    real: LabelledSet, trained: Sequence[LabelledSet], allowed: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return {"overlap": ...} if test images are in a training set, else {}; say so on the operator's console. PRIVATE.

    Raises EvaluationError if all of them are, unless that is `allowed`.
    """
    known = {digest for some in trained for digest in image_digests(some.images)}
    shared = sum(digest in known for digest in image_digests(real.images))
    if not shared:
        return {}
    words = f"{shared} of {len(real)} test images are in the training set"
    if shared == len(real) and not allowed:
        raise EvaluationError(
            f"{words}: figures would say nothing about new images; name a held-out set, or pass "
            "--allow-training-images"
        )
    say(f"PRIVATE: {words}, which flatters every figure")
    return {"overlap": {"images": len(real), "in_training": shared}}
