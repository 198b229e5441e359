"""Membership inference on the real DP-SGD: canary units are included or left out, and an adversary scores each.

Every step is `PrivatePhase.step`: the real sampler, gradients, clipping, ledger, noise and Adam. The adversary is
the one that differential privacy protects against: it knows the code, the plan, the canaries and every other unit,
and sees every step's update, but knows neither which units were sampled nor the noise. Runs are throwaway: each has
its own secret and ledger, in a temporary folder without config or checkpoint, so that nothing can be exported.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from curriculumdp.clipping.clip import ClipResult
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.curriculum.average import ema_decay
from curriculumdp.curriculum.clipped_sum import Microbatch, Seen
from curriculumdp.curriculum.initial import initial_state
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.data.images import ImageSet
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.grid_noise import from_grid
from curriculumdp.privacy.sampling import microbatches, poisson_rows
from curriculumdp.privacy.secret import RunSecret
from dpkernels.noise_step import BETA1, adam_step

# A canary's gradient is this many times the clip norm, so that clipping is put to the test.
TOO_LONG = 10.0
# The least noise that the adversary assumes, over C; with none it would divide by 0.
MIN_NOISE = 0.05
# Minimum number of parameters per canary: those without a canary show how much noise there is.
PARAMETERS_PER_CANARY = 4
# An audit is never resumed, and repeats under one secret.
NONCE = "00" * 32
NORMAL_MAD = 0.6744897501960817  # the median of |N(0, 1)|


@dataclass(frozen=True)
class Scores:
    """ratios float64 [m]: log-likelihood ratios of 'in' against 'out'; included bool [m]: the ground truth."""

    ratios: np.ndarray
    included: np.ndarray


def one_run(run: Run, canaries: int, noise: bool, secret: RunSecret) -> Scores:
    """Score `canaries` units of one run, each included by a fair coin, after all steps of the plan.

    They are the first units of `run.images`. A canary's gradient is in one coordinate of its own ("Dirac", Nasr et
    al. 2023), so that canaries do not mask each other; from there on it is treated like any other. `noise` False is
    the control. Raises EvaluationError if there are too few units or parameters.
    """
    state = initial_state(run.config, run.world.device)
    _check_room(run, state, canaries)
    coordinates = np.random.default_rng(run.config.seed).choice(len(state.weights), canaries, replace=False)
    coins = poisson_rows(secret.key("audit"), canaries, 0.5)
    ratios = np.zeros(canaries)
    planted = replace(run, images=_with_canaries(run.images, canaries, coins))
    with throwaway(planted, secret) as made:
        phase = AuditedPhase(made, noise, dict(enumerate(coordinates.tolist())))
        phase.begin(made, state)
        for step in range(phase.steps):
            seen = phase.seen_step(made, state, step)
            signal = seen[torch.from_numpy(coordinates)].numpy()
            ratios += log_ratio(signal, noise_of(seen), phase.event.sample_rate)
    included = np.zeros(canaries, dtype=bool)
    included[coins] = True
    return Scores(ratios, included)


def many_runs(run: Run, secrets: Iterator[RunSecret], trials: int, noise: bool) -> Scores:
    """Score one canary in each of `trials` runs, alternately in and out, after all steps of the plan.

    The canary is a white image with its real gradient. It is the only unit: `run.images` is not read. `noise` False
    is the control.
    """
    absent = of_units(run, 1, microbatch=1)
    present = replace(absent, images=_one_white_image(absent))
    state = initial_state(run.config, run.world.device)
    start = {name: tensor.clone() for name, tensor in state.tensors().items()}
    included = np.arange(trials) % 2 == 0
    ratios = np.zeros(trials)
    for trial, inside in enumerate(included):
        state.load(start)
        with throwaway(present if inside else absent, next(secrets)) as made:
            phase = AuditedPhase(made, noise)
            phase.begin(made, state)
            known = replace(made, images=present.images)
            for step in range(phase.steps):
                ratios[trial] += _step_ratio(phase, made, known, state, step)
    return Scores(ratios, included)


def _step_ratio(phase: "AuditedPhase", run: Run, known: Run, state: State, step: int) -> float:
    """Do a step of `run` and return its log-likelihood ratio for unit 0, whose image the adversary has in `known`."""
    clipped, _ = phase.clipped_sum(known, state, step, np.zeros(1, dtype=np.int64))
    canary = from_grid(clipped, 1.0)
    seen = phase.seen_step(run, state, step)
    power = float(canary @ canary)
    if power == 0:
        return 0.0
    signal = np.array([float(seen @ canary) / power])
    spread = noise_of(seen) / power**0.5
    return float(log_ratio(signal, spread, phase.event.sample_rate)[0])


def log_ratio(signal: np.ndarray, spread: float, sample_rate: float) -> np.ndarray:
    """Return ln of (1−q)·N(0, s²) + q·N(1, s²) over N(0, s²) at each of `signal`, the optimal score of a step.

    s is `spread` and q is `sample_rate`.
    """
    with np.errstate(divide="ignore"):  # ln 0 where q is 1
        out, inside = np.log(1 - sample_rate), np.log(sample_rate)
    return np.asarray(np.logaddexp(out, inside + (2 * signal - 1) / (2 * spread**2)))


def noise_of(seen: Tensor) -> float:
    """Estimate the noise's standard deviation in `seen` from the median of its magnitudes; at least MIN_NOISE."""
    return max(MIN_NOISE, float(seen.abs().median()) / NORMAL_MAD)


class AuditedPhase(PrivatePhase):
    """DP-SGD with canaries whose gradients the adversary chooses or, as a control, without its noise.

    No config can select it: it is not in `run.PHASES`, and it writes nothing.
    """

    def __init__(self, run: Run, noise: bool, coordinates: Mapping[int, int] | None = None) -> None:
        super().__init__(run)
        self.noise = noise
        self._coordinates = coordinates
        self._coming: Iterator[np.ndarray] = iter(())

    def clipped_sum(self, run: Run, state: State, step: int, rows: np.ndarray) -> tuple[Tensor, list[Seen]]:
        self._coming = iter(microbatches(rows, run.config.compute.microbatch))
        return super().clipped_sum(run, state, step, rows)

    def _microbatch(self, run: Run, state: State) -> Microbatch:
        work = super()._microbatch(run, state)
        if self._coordinates is not None:
            microbatch, draws = run.config.compute.microbatch, self.config.draws
            work.engine = _DiracGradients(
                state.net, microbatch, draws, self._coordinates, lambda: next(self._coming)
            )
        return work

    def update(self, state: State, step: int, total: Tensor, key: bytes) -> None:
        if self.noise:
            super().update(state, step, total, key)
            return
        gradient = from_grid(total, self.config.clip_norm) / self.expected_units
        adam_step(gradient.float(), state, step, self.learning_rate(step), ema_decay(self.config, step))

    def seen_step(self, run: Run, state: State, step: int) -> Tensor:
        """Do a step and return the noisy sum that it revealed, in units of C, float64 [P].

        It is recovered from the change of Adam's first moment: from what training did, not what it meant to do.
        """
        before = state.exp_avg.double()
        self.step(run, state, step)
        gradient = (state.exp_avg.double() - BETA1 * before) / (1 - BETA1)
        return gradient * (self.expected_units / self.config.clip_norm)


class _DiracGradients(PerUnitGradients):
    """Per-unit gradients where canary i's is TOO_LONG·C in coordinate `coordinates[i]` and 0 elsewhere."""

    def __init__(
        self,
        net: torch.nn.Module,
        units: int,
        draws: int,
        coordinates: Mapping[int, int],
        next_units: Callable[[], np.ndarray],
    ) -> None:
        super().__init__(net, units, draws)
        self._coordinates, self._next_units = coordinates, next_units

    def add_clipped_grads(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        for row, unit in enumerate(self._next_units().tolist()):
            if unit in self._coordinates:
                self.grads[row].zero_()
                self.grads[row, self._coordinates[unit]] = TOO_LONG * clip_norm
        return super().add_clipped_grads(total, clip_norm, present)


@contextmanager
def throwaway(run: Run, secret: RunSecret) -> Iterator[Run]:
    """Yield `run` from its start, with `secret` and a ledger of its own, which is deleted afterwards."""
    with TemporaryDirectory(prefix="curriculumdp-audit-") as folder:
        planned = {"events": [asdict(event) for event in run.plan.events()]}
        ledger = Ledger.create(Path(folder), secret, planned, list(run.images.content_arrays().values()))
        try:
            made = replace(run, secret=secret, ledger=ledger, stopping=threading.Event())
            made.begin({}, NONCE)
            yield made
        finally:
            ledger.close()


def of_units(run: Run, units: int, microbatch: int | None = None) -> Run:
    """Return `run` on a set of `units` units that own nothing; at the same sample rate it costs the same ε."""
    config = run.config
    data = config.data.model_copy(update={"units": units, "class_counts": None})
    compute = config.compute.model_copy(update={"microbatch": microbatch or config.compute.microbatch})
    none = np.zeros((0, data.channels, data.size, data.size), dtype=np.uint8)
    nobody = np.zeros(0, dtype=np.int64)
    return replace(
        run,
        config=config.model_copy(update={"data": data, "compute": compute}),
        images=ImageSet(none, nobody, nobody, units),
    )


def _one_white_image(run: Run) -> ImageSet:
    """Return `run.images` with a white image of class 0 for unit 0."""
    shape = run.images.images.shape[1:]
    return run.images.with_unit(0, np.full((1, *shape), 255, dtype=np.uint8), np.zeros(1, dtype=np.int64))


def _with_canaries(images: ImageSet, canaries: int, coins: np.ndarray) -> ImageSet:
    """Return `images` whose first `canaries` units own nothing, except one black image for each unit in `coins`."""
    kept = images.units >= canaries
    shape = (len(coins), *images.images.shape[1:])
    return ImageSet(
        np.concatenate([np.zeros(shape, dtype=np.uint8), images.images[kept]]),
        np.concatenate([np.zeros(len(coins), dtype=np.int64), images.labels[kept]]),
        np.concatenate([coins, images.units[kept]]),
        images.unit_count,
    )


def _check_room(run: Run, state: State, canaries: int) -> None:
    units, parameters = run.config.data.units, len(state.weights)
    if not 1 <= canaries <= min(units, parameters // PARAMETERS_PER_CANARY):
        raise EvaluationError(
            f"{canaries} canaries: each needs one unit of data.units = {units} and {PARAMETERS_PER_CANARY} of the "
            f"{parameters} parameters: ask for 1 to {min(units, parameters // PARAMETERS_PER_CANARY)}"
        )
