"""The doctor's checks of what surrounds a run: launcher, packages, plan, budget, data, disk."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.dataset import definition_of, place_of
from curriculumdp.curriculum.declared import load_declared, with_class_names
from curriculumdp.curriculum.dry_step import GIB, machine_memory, require_memory, require_packages
from curriculumdp.curriculum.engine_check import EngineCheck
from curriculumdp.curriculum.estimate import Estimate
from curriculumdp.curriculum.plan import Plan, noise_figures, plan_curriculum, signal_line
from curriculumdp.data.content import shared_between_units
from curriculumdp.data.images import ImageSet
from curriculumdp.disk import require_writable
from curriculumdp.ledger.dataset_ledger import DatasetLedger
from curriculumdp.ledger.run_ledger import ledger_is_missing
from curriculumdp.privacy.event import as_typed, rounded_up
from curriculumdp.privacy.grid_noise import check_capacity
from curriculumdp.rendezvous import launched_processes, require_plain_launch
from curriculumdp.world import open_world

Status = Literal["ok", "warning", "FAILED", "skipped"]
Verdict = tuple[Status, str]


@dataclass
class Case:
    """The config under examination, and what earlier checks have found for later ones."""

    config: Config
    show_private: bool = False
    rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parameters: int = 0
    decoded: int = 0  # PRIVATE: bytes of the decoded images
    plan: Plan | None = None
    engine: EngineCheck | None = None
    peak: Estimate | None = None


def check_launch(case: Case) -> Iterator[Verdict]:
    """Processes, threads and the device; with a launcher, whether all processes come together."""
    compute = case.config.compute
    require_plain_launch()
    launched = launched_processes()
    with open_world(
        compute.device, compute.processes if launched > 1 else None, compute.join_minutes
    ) as world:
        world.any(False)
        case.rank, case.device = world.rank, world.device
    if case.rank:
        return
    torch.set_num_threads(compute.threads)
    if launched == 1 and (compute.processes or 1) > 1:
        yield (
            "warning",
            f"compute.processes is {compute.processes}, but this is one process: whether they meet was not tried; "
            "start this command as you will start launch/train.py",
        )
    count, cores = processes_here(case.config), len(os.sched_getaffinity(0))
    figure = f"{count} × {compute.threads} threads here, {cores} CPU cores, training on {case.device.type}"
    if count * compute.threads > cores:
        yield (
            "warning",
            f"{figure}: threads that share a core wait for each other; lower compute.threads or the processes",
        )
    else:
        yield "ok", figure


def processes_here(config: Config) -> int:
    """Return how many processes will train on this machine: as launched, else all that the config asks for."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(here) if here.isdecimal() and launched_processes() > 1 else config.compute.processes or 1


def check_sizes(case: Case) -> Iterator[Verdict]:
    """Whether any one thing that a run holds is larger than the machine's memory, which would kill this command too."""
    require_memory(case.config)
    yield "ok", f"no single part of the run exceeds the {machine_memory() / GIB:.3g} GiB of this machine"


def check_packages(case: Case) -> Iterator[Verdict]:
    """Optional packages that the config asks for."""
    require_packages(case.config)
    yield "ok", "all that the config asks for can be imported"


def check_plan(case: Case) -> Iterator[Verdict]:
    """The plan, whether its noise fits the exact sum, and whether it drowns the images."""
    config = case.config
    plan = plan_curriculum(config)
    for event in plan.events():
        check_capacity(config.data.units, event.noise_multiplier)
    case.plan = plan
    noises = [
        f"{row.name} {row.noise_multiplier:.3g}" for row in plan.phases if row.noise_multiplier is not None
    ]
    yield (
        "ok",
        f"ε = {rounded_up(plan.epsilon)} of {as_typed(plan.budget)} at δ = {as_typed(plan.delta)}; noise multipliers: "
        + ", ".join(noises),
    )
    for line in noise_figures(config, plan).warnings():
        yield "warning", line
    if (line := signal_line(config) or "").startswith("warning: "):
        yield "warning", line.removeprefix("warning: ")


def check_budget(case: Case) -> Iterator[Verdict]:
    """Room for this run in the ledger of its data set; nothing is reserved."""
    config, plan = case.config, case.plan
    assert plan is not None
    if config.data.name is None:
        yield "ok", "data.name is not set: no ledger composes this run with others on the same data"
        return
    place, definition = place_of(config), definition_of(config)
    shared = DatasetLedger.find(place, definition)
    if shared is None and config.data.budget is not None:
        DatasetLedger.open(place, definition)  # raises: with a budget it creates nothing
    elif shared is None:
        require_writable(place, folder=True)
        yield "ok", f"training will create the ledger of data set {config.data.name} in {place}"
    elif not ledger_is_missing(Path(config.run_dir) / "private"):
        yield "ok", f"{config.run_dir} holds a run that has begun: its cost is reserved in {place}"
    elif shared.limit is None:
        yield "ok", f"{place}: data.budget is not set, nothing limits this run"
    else:
        shared.require_room(plan.events())
        share = shared.limit.share(plan.events())
        yield "ok", f"this run takes {share:.2%} of data.budget = {as_typed(shared.limit.budget)} and fits"


def check_data(case: Case) -> Iterator[Verdict]:
    """The images, by the reader that training uses, against what the config declares. PRIVATE where shown.

    They are decoded into memory: training alone leaves them on disk.
    """
    config, notes = case.config, list[str]()
    images = load_declared(config, cache=None, say=notes.append)
    case.decoded = images.images.nbytes if config.data.source != "digits" else 0
    names = with_class_names(config, images.class_names).data.class_names
    data = config.data
    called = "numbers without names" if names is None else ", ".join(names[:10]) + ", …" * (len(names) > 10)
    yield (
        "ok",
        f"as declared: {data.units} units ({data.unit}), {data.channels}×{data.size}×{data.size}, {data.classes} "
        f"classes: {called}",
    )
    for note in notes:
        yield "ok", note
    if case.show_private:
        yield "ok", f"PRIVATE: {_counted(images, data.classes)}"
    if repeated := shared_between_units(images):
        shown = f"PRIVATE: {repeated} images" if case.show_private else "some images"
        yield (
            "warning",
            f"{shown} are the same picture as an image of another unit: a person shown in both is protected less than "
            "one unit; remove the repeats, or name their owners",
        )


def _counted(images: ImageSet, classes: int) -> str:
    """Return the counts of images by unit and class. PRIVATE."""
    by_class = np.bincount(images.labels, minlength=classes).tolist()
    owned = images.counts
    return (
        f"{len(images.labels)} images, {int((owned == 0).sum())} units without one, at most {int(owned.max())} per "
        f"unit; by class: {', '.join(map(str, by_class))}"
    )


def check_disk(case: Case) -> Iterator[Verdict]:
    """Whether the run's folder can be written, and has room for decoded images, checkpoints and release."""
    config = case.config
    folder = Path(config.run_dir)
    require_writable(folder / "private" if folder.is_dir() else folder, folder=True)
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free, need = shutil.disk_usage(there).free, disk_needed(config, case.parameters)
    figure = f"{folder} is writable; {free / GIB:.3g} GiB are free"
    if not case.parameters:
        yield "warning", f"{figure}; how much a checkpoint takes is not known, since phases failed"
        return
    figure += f", checkpoints and release need {need / GIB:.2g} GiB, the decoded images their own"
    if need + case.decoded > free:
        yield "FAILED", f"{figure}: free some, set another run_dir, or lower checkpoint.keep"
    else:
        yield "ok", figure


def disk_needed(config: Config, parameters: int) -> int:
    """Return the bytes of all checkpoints that are kept at once, one of them unfinished, and of the release. PUBLIC."""
    data = config.data
    made = config.central.queries * data.classes if config.central else 0
    made += config.frequency.images if config.frequency else 0
    pixels = data.channels * data.size**2
    embedding = 16 * config.frequency.features * data.classes if config.frequency else 0
    checkpoint = 16 * parameters + made * (pixels + 8) + embedding
    release = 4 * parameters + (made + config.sampling.per_class * data.classes) * pixels
    return (config.checkpoint.keep + 1) * checkpoint + release
