"""The phases of a curriculum: their names and order, defined in this one place. PUBLIC."""

from dataclasses import dataclass
from typing import Literal, get_args

PhaseName = Literal["central", "frequency", "warmup", "private"]
PHASE_NAMES: tuple[PhaseName, ...] = get_args(PhaseName)
DEFAULT_CURRICULUM: tuple[PhaseName, ...] = ("central", "warmup", "private")
# The phase whose noise is solved from the budget; every other charged phase has its own `noise_multiplier` option.
SOLVED: PhaseName = "private"


@dataclass(frozen=True)
class PhaseFacts:
    """How a phase is described. count: the option that sets its number of steps; charged: whether they spend ε.

    A phase without a `count` is one release on all units: one step at a sample rate of 1.
    title: its name in tables of what was spent. work: its name in plots and timings.
    """

    count: str | None
    charged: bool
    title: str
    work: str


PHASES: dict[str, PhaseFacts] = {
    "central": PhaseFacts("queries", True, "central images", "central queries"),
    "frequency": PhaseFacts(None, True, "frequency embedding", "frequency embedding and its generator"),
    "warmup": PhaseFacts("steps", False, "warm-up", "training on central and frequency images"),
    "private": PhaseFacts("steps", True, "DP-SGD", "DP-SGD"),
}


def title_of(name: str) -> str:
    """Return a phase's title, or `name` itself if this version does not know the phase."""
    return PHASES[name].title if name in PHASES else name


def work_of(name: str) -> str:
    """Return a description of a phase's work, or `name` itself if this version does not know the phase."""
    return PHASES[name].work if name in PHASES else name
