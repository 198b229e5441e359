"""The dry step: one step per phase on dummy images before the ledger exists, so bad configs are refused uncharged.

PUBLIC: it reads no image of the data set and draws nothing from the run's secret. Its draws come from a fixed secret
of its own, so a config always gets the same answer on the same machine. It leaves no trace in the state.
"""

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.central import UNITS_AT_ONCE
from curriculumdp.curriculum.embedding import UNITS_AT_ONCE as EMBEDDED_AT_ONCE
from curriculumdp.curriculum.plan import Plan, PlannedPhase
from curriculumdp.curriculum.run import Phase, Run
from curriculumdp.curriculum.soundness import fault_of
from curriculumdp.curriculum.state import State
from curriculumdp.data.images import ImageSet
from curriculumdp.diffusion.sample import SAMPLERS, denoise
from curriculumdp.errors import UserError
from curriculumdp.phases import PHASES
from curriculumdp.privacy.event import Mechanism
from curriculumdp.privacy.secret import KEY_BYTES, RunSecret
from curriculumdp.tracking import missing
from curriculumdp.world import World

GIB = 2**30
# Close to the max noise that the grid can hold: the plan is not solved yet, and Adam copes with any.
STAND_IN_NOISE = 1e4
MECHANISM: Mechanism = "subsampled_gaussian"
SAMPLED_STEPS = 4
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class DryStepError(UserError):
    """A config that cannot be trained on this machine; nothing has been charged."""


def require_memory(config: Config, memory: int | None = None) -> None:
    """Raise DryStepError, naming the option, if a single thing that a run must hold exceeds the machine's memory.

    memory: bytes, by default this machine's. Otherwise there would be no error: the system would kill the process.
    """
    memory = machine_memory() if memory is None else memory
    for key, what, bytes_ in _needs(config):
        if bytes_ > memory:
            raise DryStepError(
                f"{key}: {what} alone take at least {bytes_ / GIB:.3g} GiB, but this machine has only "
                f"{memory / GIB:.3g} GiB: lower {key}"
            )


def _needs(config: Config) -> Iterator[tuple[str, str, int]]:
    """Yield (option, what it determines the size of, min bytes of that), from the config alone."""
    data, model, compute, private = config.data, config.model, config.compute, config.private
    pixels, widest = data.channels * data.size**2, model.channels[0] * data.size**2
    parameters = 9 * model.blocks * sum(width**2 for width in model.channels)
    embeddings = 4 * model.channels[0] * data.classes
    # Weights, their average and Adam's moments in fp32, a sum in int64.
    yield "model.channels", "the weights and the optimiser", 24 * parameters
    yield "data.classes", "the embeddings of the classes", 24 * embeddings
    yield "data.size", "the images", data.units * pixels
    if compute.device == "cpu":
        yield "compute.microbatch", "the gradients of a microbatch", 4 * compute.microbatch * parameters
    per_image = 32 * pixels + 8 * widest
    yield "compute.microbatch", "the images of a microbatch", compute.microbatch * per_image
    drawn = compute.microbatch * private.draws * per_image
    yield "private.draws", "the draws of a microbatch", drawn
    if config.warmup is not None:
        yield "warmup.batch", "the images of a warm-up step", config.warmup.batch * per_image
    if (central := config.central) is not None:
        cells = data.classes * data.channels * central.size**2
        bins = central.bins if central.statistic == "mode" else 1
        yield "central.size", "the vectors of a query", 16 * min(UNITS_AT_ONCE, data.units) * cells * bins
        yield "central.queries", "the central images", 2 * central.queries * data.classes * pixels
        yield "central.median", "the windows of the median", 8 * data.classes * pixels * central.median**2
    if (frequency := config.frequency) is not None:
        embedded = 2 * frequency.features * data.classes
        yield "frequency.features", "the projection of the embedding", 16 * pixels * frequency.features
        yield (
            "frequency.features",
            "the embeddings of some units",
            4 * min(EMBEDDED_AT_ONCE, data.units) * embedded,
        )
        yield "frequency.images", "the images drawn", 2 * frequency.images * pixels
    yield "sampling.per_class", "the samples", 5 * config.sampling.per_class * data.classes * pixels


def machine_memory() -> int:
    """Return the max bytes this process can have: the machine's memory, or its control group's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text(encoding="utf-8").strip() if CGROUP_LIMIT.exists() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical


def dry_step(
    config: Config, world: World, state: State, phases: Mapping[str, Callable[[Run], Phase]]
) -> None:
    """Do one step per phase on dummy images; raise DryStepError or another UserError on every rank if any fails.

    phases: how to make each phase. It costs about one microbatch, one warm-up step and one query on each rank.
    Weights, moments and generators are restored afterwards, and the memory is free again.
    """
    error: Exception | None = None
    try:
        with _no_trace(state):
            _each_phase(config, world.device, state, phases)
    except ValueError as raised:
        error = raised
    if world.any(error is not None):
        raise error or DryStepError(
            "another process cannot do a step of this config: its own error line says why"
        )


def _each_phase(
    config: Config, device: torch.device, state: State, phases: Mapping[str, Callable[[Run], Phase]]
) -> None:
    require_packages(config)
    _require_room_for_gradients(config, state)
    run = dummy_run(config, device)
    for phase in config.curriculum:
        with _one_line_errors(phase):
            if (fault := fault_of(state)) is not None:
                instead = "another init_from" if config.init_from else "other options of model"
                raise DryStepError(f"{phase}: before its first step {fault}: use {instead}")
            if (fault := phases[phase](run).rehearse(run, state)) is not None:
                raise DryStepError(f"{phase}: {fault}")
    with _one_line_errors("sampling"):
        _sample(config, state)


def dummy_run(config: Config, device: torch.device) -> Run:
    """Return a run of the config on dummy images under a fixed secret, in a world of one, without a ledger."""
    charged = {name: getattr(config, name) for name in config.curriculum if PHASES[name].charged}
    rows = [
        PlannedPhase(
            name, MECHANISM, options.sample_rate if PHASES[name].count else 1.0, STAND_IN_NOISE, 1, 0.0, None
        )
        for name, options in charged.items()
    ]
    count = max(config.compute.microbatch, min(UNITS_AT_ONCE, config.data.units))
    return Run(
        config,
        Plan(tuple(rows), config.privacy.epsilon, config.privacy.delta, config.privacy.epsilon, "none"),
        World(0, 1, device),
        RunSecret.from_bytes(bytes(KEY_BYTES)),
        _dummy_images(config, count),
    )


def _dummy_images(config: Config, count: int) -> ImageSet:
    """Return `count` units with one image of public noise each."""
    data = config.data
    shape = (count, data.channels, data.size, data.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return ImageSet(
        pixels, np.arange(count, dtype=np.int64) % data.classes, np.arange(count, dtype=np.int64), count
    )


def _sample(config: Config, state: State) -> None:
    """Draw a sample as the release will, but in a few steps and from the untrained network."""
    net, sampling = state.net, config.sampling
    steps = min(sampling.steps, SAMPLED_STEPS)
    shape = (
        SAMPLERS[sampling.sampler].normals(steps),
        1,
        config.data.channels,
        config.data.size,
        config.data.size,
    )
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = denoise(
            net,
            noise,
            torch.zeros(1, dtype=torch.int64),
            steps=steps,
            sampler=sampling.sampler,
            sigma_data=config.private.sigma_data,
        )
    if not bool(image.isfinite().all()):
        raise DryStepError("sampling: a sample on dummy images is not finite: use another private.sigma_data")


def require_packages(config: Config) -> None:
    """Raise DryStepError if an optional package that the config asks for cannot be imported."""
    if found := missing(config.logging.trackers):
        name, why = found
        raise DryStepError(
            f"logging.trackers has {name}, which cannot be imported ({why}): install it (pip install '.[{name}]' in "
            "the checkout), or leave it out"
        )
    asked = {"logging.tensorboard": ("torch.utils.tensorboard", config.logging.tensorboard)}
    for key, (module, on) in asked.items():
        try:
            if on:
                importlib.import_module(module)
        except Exception as error:  # whatever a broken installation raises
            raise DryStepError(
                f"{key} is true, but {module} cannot be imported ({' '.join(str(error).split())[:200]}): install "
                f"it (pip install 'curriculumdp[{key.rpartition('.')[2]}]') or set {key}=false"
            ) from error


def _require_room_for_gradients(config: Config, state: State) -> None:
    """Raise DryStepError if a CPU cannot store all per-unit gradients; on a GPU the layer plan fits them in memory."""
    bytes_, memory = 4 * config.compute.microbatch * state.weights.numel(), machine_memory()
    if not state.weights.is_cuda and bytes_ > memory:
        raise DryStepError(
            f"compute.microbatch is {config.compute.microbatch}: its gradients take {bytes_ / GIB:.3g} GiB, but this "
            f"machine has only {memory / GIB:.3g} GiB: lower compute.microbatch"
        )


@contextmanager
def _one_line_errors(phase: str) -> Iterator[None]:
    """Turn errors of torch and other libraries into a one-line DryStepError; let the package's own errors through."""
    try:
        yield
    except (ValueError, RuntimeError, OverflowError, MemoryError, ZeroDivisionError) as error:
        if type(error).__module__.startswith("curriculumdp"):
            raise
        text = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise DryStepError(
            f"{phase}: a step on dummy images failed: {text}: {_remedy(text, phase)}"
        ) from error


def _remedy(text: str, phase: str) -> str:
    if "deterministic" in text:
        return "a step must be reproducible to the bit: set compute.device=cpu, or use a model without that operation"
    if "memory" in text:
        return "lower compute.microbatch, private.draws or model.channels"
    return f"change the options of {phase}, private or model that differ most from the shipped configs"


@contextmanager
def _no_trace(state: State) -> Iterator[None]:
    """Restore the state and torch's generators on exit; the copies are on the CPU, which has the room."""
    buffers = {name: tensor.to("cpu", copy=True) for name, tensor in state.tensors().items()}
    central, device = state.central, state.weights.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        state.load(buffers)
        state.central = central
        # Engines lie in cycles of references, and the run could not allocate its own beside them.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
