"""Real steps outside a whole run: a Run with a ledger on disk, data that sum to nothing, what a step adds."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp.config.config import Config
from curriculumdp.curriculum import central, private
from curriculumdp.curriculum.central import CentralPhase, CentralQuery
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.data.images import ImageSet
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.world import World, one_process
from dpkernels.noise_step import BETA1
from tests.support.runs import NONCE, SECRET, bare_run


def charged_run(
    images: ImageSet,
    config: Config,
    folder: Path,
    world: World | None = None,
    secret: bytes = SECRET,
    nonce: str = NONCE,
) -> tuple[Run, State]:
    """A Run that charges a ledger in `folder` (rank 0), as often as it is asked, and an untrained State."""
    world = world or one_process()
    run, state = bare_run(images, world, config, secret)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"events": [asdict(row) for row in run.plan.events()]}
        run.ledger = Ledger.create(folder, run.secret, record, [], lambda _: True)
    run.begin({}, nonce)
    return run, state


def nobody(units: int = 1437, channels: int = 1) -> ImageSet:
    """Data in which no place owns an image: every sum is zero, and what a step adds is noise alone."""
    images = np.zeros((0, channels, 8, 8), dtype=np.uint8)
    return ImageSet(images, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), units)


def forget_rows(patch: pytest.MonkeyPatch) -> None:
    """Makes every Poisson sample empty: with `nobody` the same sums, without the work on empty places."""
    for module in (central, private):
        patch.setattr(module, "poisson_rows", lambda *_: np.zeros(0, dtype=np.int64))


def gradient_of_step(phase: PrivatePhase, run: Run, state: State, step: int) -> Tensor:
    """What one DP-SGD step learns from, float64 [P], times the expected batch: the noisy sum in gradients' unit.

    Read from Adam's first moment, which a step that begins with none makes (1 − β₁)·gradient.
    """
    state.exp_avg.zero_()
    phase.step(run, state, step)
    expected = run.config.private.sample_rate * run.config.data.units
    return state.exp_avg.double() / (1 - BETA1) * expected


def noisy_sum_of_query(phase: CentralPhase, run: Run, state: State, step: int) -> Tensor:
    """The noisy sum int64 [d] that one central query makes its images of."""
    seen: list[Tensor] = []
    original = central.images_of_sum

    def watched(query: CentralQuery, noisy: Tensor, *rest: int) -> Tensor:
        seen.append(noisy.clone())
        return original(query, noisy, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(central, "images_of_sum", watched)
        phase.step(run, state, step)
    assert len(seen) == 1
    return seen[0]


def gradients(phase: PrivatePhase, run: Run, state: State, steps: int) -> Tensor:
    """`gradient_of_step` of steps 0, 1, …: float64 [steps, P]."""
    return torch.stack([gradient_of_step(phase, run, state, step) for step in range(steps)])
