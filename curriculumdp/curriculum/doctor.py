"""The doctor: each check that would otherwise fail late, on this machine, before anything is charged or written.

The checks of a run's environment are in `surroundings.py`, those of its network and device here. What a check finds is
PUBLIC, but for counts of the data, which are PRIVATE and returned only if asked for.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.dry_step import GIB, dry_step, machine_memory
from curriculumdp.curriculum.engine_check import check_engine
from curriculumdp.curriculum.estimate import estimate
from curriculumdp.curriculum.initial import initial_state
from curriculumdp.curriculum.surroundings import (
    Case,
    Status,
    Verdict,
    check_budget,
    check_data,
    check_disk,
    check_launch,
    check_packages,
    check_plan,
    check_sizes,
    processes_here,
)
from curriculumdp.curriculum.train import PHASE_CLASSES
from curriculumdp.world import World

# Seconds of microbatches to time: less than `launch/plan.py --estimate` takes.
TIMED_SECONDS = 10.0
# The share of the memory above which a run is likely to meet its end in a busier moment.
TIGHT = 0.9
NO_DP_SGD: Verdict = ("ok", "the curriculum has no DP-SGD")


@dataclass(frozen=True)
class Finding:
    """What one check has found, on one line."""

    status: Status
    check: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.check}: {self.text}"


def examine(config: Config, show_private: bool = False) -> Iterator[Finding]:
    """Yield what each check finds, in order; one that fails stops only those that need it.

    Under a launcher only rank 0 goes on after all processes have joined. Reads the data; charges nothing, and writes
    nothing that stays.
    """
    case, failed = Case(config, show_private), set[str]()
    for name, check, needs in CHECKS:
        if unmet := [need for need in needs if need in failed]:
            failed.add(name)
            yield Finding("skipped", name, f"needs {' and '.join(unmet)}, see above")
            continue
        for status, text in _tried(check, case):
            if status == "FAILED":
                failed.add(name)
            yield Finding(status, name, " ".join(text.split()))
        if case.rank:
            return


def _tried(check: Callable[[Case], Iterator[Verdict]], case: Case) -> Iterator[Verdict]:
    """Yield a check's verdicts; what it raises is one."""
    try:
        yield from check(case)
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError, OverflowError) as error:
        known = type(error).__module__.startswith("curriculumdp")
        yield "FAILED", str(error) if known else f"{type(error).__name__}: {error}"[:400]
    finally:
        gc.collect()  # engines lie in cycles of references, and the next check needs the room
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_phases(case: Case) -> Iterator[Verdict]:
    """A step of each phase, and a sample, on dummy images."""
    state = initial_state(case.config, case.device)
    case.parameters = state.weights.numel()
    dry_step(case.config, World(0, 1, case.device), state, PHASE_CLASSES)
    phases = ", ".join(case.config.curriculum)
    yield (
        "ok",
        f"{phases} and sampling each take a step on dummy images ({case.parameters} weights, {case.device})",
    )


def check_gradients(case: Case) -> Iterator[Verdict]:
    """Per-unit gradients against autograd on a batch of one, and the same sum twice."""
    if "private" not in case.config.curriculum:
        yield NO_DP_SGD
        return
    found = case.engine = check_engine(case.config, case.device)
    figure = f"off by {found.error:.1e} of {found.units} units by autograd, one at a time (at most {found.allowed:.1e})"
    if found.error <= found.allowed:
        yield "ok", figure
        return
    yield (
        "FAILED",
        f"{figure}: the sum would be wrong here: set compute.precision=fp32, compute.device=cpu or another "
        "model, and report this",
    )


def check_repeats(case: Case) -> Iterator[Verdict]:
    """Whether a step redone after a crash gives the same bits."""
    if case.engine is None:
        yield NO_DP_SGD
    elif case.engine.repeats:
        yield "ok", "the same step twice gives the same sum to the bit, so a resumed run is charged once"
    else:
        yield (
            "FAILED",
            "the same step twice gives different sums: each resume would charge steps again; set compute.device=cpu, "
            "or use a model without the operation that differs",
        )


def check_speed(case: Case) -> Iterator[Verdict]:
    """How long a step and the whole phase take."""
    if case.engine is None or case.plan is None:
        yield NO_DP_SGD
        return
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    case.peak = estimate(case.config, case.plan, seconds=TIMED_SECONDS)
    yield "ok", str(case.peak)


def check_memory(case: Case) -> Iterator[Verdict]:
    """The peak of the steps that were timed against what is there."""
    if case.peak is None:
        yield NO_DP_SGD
        return
    need, there, whose = case.peak.memory, machine_memory(), "this machine"
    if case.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        there, whose = free + torch.cuda.memory_reserved(), "this GPU, beside what others hold,"
    elif (count := processes_here(case.config)) > 1:
        need, whose = need * count, f"this machine, if it runs all {count} processes,"
    figure = f"{need / GIB:.3g} GiB at peak of the {there / GIB:.3g} GiB that {whose} has"
    if need > there:
        yield "FAILED", f"{figure}: lower compute.microbatch, private.draws or model.channels"
    elif need > TIGHT * there:
        yield "warning", f"{figure}: little is left; lower compute.microbatch or private.draws"
    else:
        yield "ok", figure


# Name, check, and the checks without which it cannot go on.
CHECKS: Sequence[tuple[str, Callable[[Case], Iterator[Verdict]], tuple[str, ...]]] = (
    ("launch", check_launch, ()),
    ("packages", check_packages, ()),
    ("plan", check_plan, ()),
    ("budget", check_budget, ("plan",)),
    ("sizes", check_sizes, ()),
    ("data", check_data, ("sizes",)),
    ("phases", check_phases, ("launch", "packages", "sizes")),
    ("gradients", check_gradients, ("phases",)),
    ("repeats", check_repeats, ("gradients",)),
    ("speed", check_speed, ("phases", "plan")),
    ("memory", check_memory, ("speed",)),
    ("disk", check_disk, ()),
)
