"""The kinds of values that options take, and what changing one means on resume. PUBLIC; imports no torch or numpy."""

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from curriculumdp.printable import require_line
from curriculumdp.privacy.event import MAX_CERTIFIED_CLIP_NORM
from dpkernels.limits import MAX_CLIP_NORM, MIN_CLIP_NORM

NEUTRAL: dict[str, Any] = {"resume": "neutral"}
FRESH: dict[str, Any] = {"resume": "fresh"}


def _number(value: object) -> object:
    if isinstance(value, bool):  # YAML reads yes and on as true, which pydantic would take for 1
        raise ValueError("must be a number, not true or false")
    return value


def _levels(value: object) -> object:
    levels = value if isinstance(value, list | tuple) else [value]
    if len(levels) not in (1, 3) or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ValueError("must be one level, 0..255, or three: [red, green, blue]")
    return levels[0] if len(levels) == 1 else tuple(levels)


Float = Annotated[float, BeforeValidator(_number)]
Int = Annotated[int, BeforeValidator(_number)]
Count = Annotated[Int, Field(ge=1)]
Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Background = Annotated[int | tuple[int, int, int], BeforeValidator(_levels)]
Rate = Annotated[Float, Field(gt=0, le=1)]
Share = Annotated[Float, Field(ge=0, lt=1)]


# What the clipped sums can carry and a certificate can state: a value outside would fail after it was paid for.
ClipNorm = Annotated[Float, Field(ge=MIN_CLIP_NORM, le=min(MAX_CLIP_NORM, MAX_CERTIFIED_CLIP_NORM))]
SamplerName = Literal["dpm", "heun", "euler", "churn"]


# The same pattern as in `dataset_ledger.state_folder`, where it names a folder.
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Line = Annotated[str, Field(min_length=1), AfterValidator(require_line)]


def at_home(path: str) -> str:
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError("there is no such user: give the whole path, or ./~ for a name that begins so")
    return whole


# `~` is the home here too: no shell expands it in a file or behind a key.
PathName = Annotated[str, AfterValidator(at_home)]


class Section(BaseModel):
    """A section of the config: frozen; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
