"""The phases of a curriculum: their names and order, written here once. PUBLIC."""

from dataclasses import dataclass
from typing import Literal, get_args

PhaseName = Literal["central", "warmup", "private"]
PHASE_NAMES: tuple[PhaseName, ...] = get_args(PhaseName)


@dataclass(frozen=True)
class PhaseFacts:
    """What people are told of a phase. `count`: the option that says how many steps it has.

    charged: whether its steps spend privacy. title: in tables of what was spent. work: in plots and times.
    """

    count: str
    charged: bool
    title: str
    work: str


PHASES: dict[str, PhaseFacts] = {
    "central": PhaseFacts("queries", True, "central images", "central queries"),
    "warmup": PhaseFacts("steps", False, "warm-up", "training on central images"),
    "private": PhaseFacts("steps", True, "DP-SGD", "DP-SGD"),
}


def title_of(name: str) -> str:
    """Return a phase's title, or the name itself of a phase that this version does not know."""
    return PHASES[name].title if name in PHASES else name


def work_of(name: str) -> str:
    """Return what a phase does, or the name itself of a phase that this version does not know."""
    return PHASES[name].work if name in PHASES else name
