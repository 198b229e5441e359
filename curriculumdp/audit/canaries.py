"""Membership inference on the real DP-SGD: canary units go in or stay out, and an adversary scores each.

Every step is `PrivatePhase.step`: the real sampler, gradients, clipping, ledger, noise and Adam. The adversary is
the one that differential privacy is about: it knows the code, the plan, the canaries and every other unit, and
sees every step's update; it does not know whom the sampler took, nor the noise. Runs are throwaway: a secret and
a ledger of their own, in a temporary folder without config or checkpoint, so that nothing can be exported.
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
from curriculumdp.curriculum.clipped_sum import Microbatch, Seen
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.curriculum.train import initial_state
from curriculumdp.data.images import ImageSet
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.grid_noise import from_grid
from curriculumdp.privacy.sampling import microbatches, poisson_rows
from curriculumdp.privacy.secret import RunSecret
from dpkernels.noise_step import BETA1, adam_step

# A canary's gradient is this many times the clip norm, so that clipping has to hold.
TOO_LONG = 10.0
# The least noise that the adversary reckons with, over C: without any it would divide by 0.
MIN_NOISE = 0.05
# Of parameters a canary: the others show how much noise there is.
PARAMETERS_PER_CANARY = 4
NORMAL_MAD = 0.6744897501960817  # the median of |N(0, 1)|


@dataclass(frozen=True)
class Scores:
    """ratios float64 [m]: the log-likelihood ratio of 'in' against 'out'; included bool [m]: the truth."""

    ratios: np.ndarray
    included: np.ndarray


def one_run(run: Run, canaries: int, noise: bool, secret: RunSecret) -> Scores:
    """Scores of `canaries` units of one run, each in by a fair coin, after all steps of the plan.

    They take the first places of `run.images`. A canary's gradient is one coordinate of its own ("Dirac", Nasr
    et al. 2023), so that canaries do not hide each other; from there on it is treated like any other. `noise`
    False is the control. Raises EvaluationError where the places or parameters do not suffice.
    """
    state = initial_state(run.config, run.world.device)
    _check_room(run, state, canaries)
    coordinates = np.random.default_rng(run.config.seed).choice(len(state.weights), canaries, replace=False)
    coins = poisson_rows(secret.key("audit"), canaries, 0.5)
    ratios = np.zeros(canaries)
    whole = replace(run, images=_with_canaries(run.images, canaries, coins))
    with throwaway(whole, secret) as made:
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
    """Scores of one canary in `trials` runs, in and out by turns, each after all steps of the plan.

    The canary is a white image, whose gradient the network makes. It is the only unit there is: `run.images` are
    not looked at. `noise` False is the control.
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
    """Does a step of `run`; what it tells of unit 0, whose image the adversary has in `known`."""
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
    """ln of (1−q)·N(0, s²) + q·N(1, s²) over N(0, s²) at each of `signal`: the best a step can tell."""
    with np.errstate(divide="ignore"):  # ln 0 where q is 1
        out, inside = np.log(1 - sample_rate), np.log(sample_rate)
    return np.asarray(np.logaddexp(out, inside + (2 * signal - 1) / (2 * spread**2)))


def noise_of(seen: Tensor) -> float:
    """The standard deviation of what is in most coordinates of `seen`, by the median; at least MIN_NOISE."""
    return max(MIN_NOISE, float(seen.abs().median()) / NORMAL_MAD)


class AuditedPhase(PrivatePhase):
    """DP-SGD with canaries whose gradients are chosen by the adversary, or, as a control, without its noise.

    No config can ask for it: it is not in `run.PHASES`, and it writes nothing.
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
        adam_step(gradient.float(), state, step, self.learning_rate(step), self.config.ema)

    def seen_step(self, run: Run, state: State, step: int) -> Tensor:
        """Does a step and returns the noisy sum that it released, in units of C, float64 [P].

        It is read off the change of Adam's first moment: from what training did, not from what it meant to add.
        """
        before = state.exp_avg.double()
        self.step(run, state, step)
        gradient = (state.exp_avg.double() - BETA1 * before) / (1 - BETA1)
        return gradient * (self.expected_units / self.config.clip_norm)


class _DiracGradients(PerUnitGradients):
    """Per-unit gradients in which canary i's is TOO_LONG·C in coordinate `coordinates[i]` and 0 elsewhere."""

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
    """`run` from its beginning, under a secret and a ledger of its own, which are gone afterwards."""
    with TemporaryDirectory(prefix="curriculumdp-audit-") as folder:
        planned = {"events": [asdict(release) for release in run.plan.events()]}
        ledger = Ledger.create(Path(folder), secret, planned, list(run.images.content_arrays().values()))
        try:
            made = replace(run, secret=secret, ledger=ledger, stopping=threading.Event())
            made.begin({})  # nobody resumes it
            yield made
        finally:
            ledger.close()


def of_units(run: Run, units: int, microbatch: int | None = None) -> Run:
    """`run` on a set of `units` places that own nothing: at the same sample rate it costs the same ε."""
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
    """`run.images`, and in place 0 a white image of class 0."""
    shape = run.images.images.shape[1:]
    return run.images.with_unit(0, np.full((1, *shape), 255, dtype=np.uint8), np.zeros(1, dtype=np.int64))


def _with_canaries(images: ImageSet, canaries: int, coins: np.ndarray) -> ImageSet:
    """`images` whose first `canaries` places own nothing but, in the places `coins`, one black image."""
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
            f"{canaries} canaries: they need a unit each, of data.units = {units}, and {PARAMETERS_PER_CANARY} "
            f"parameters each, of {parameters}: ask for between 1 and {min(units, parameters // PARAMETERS_PER_CANARY)}"
        )
