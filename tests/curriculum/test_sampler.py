"""P4 on the real steps: who is in a step of a run, over steps, phases, ranks and data.

Keys are fixed, so that every figure is exact from run to run; bounds are 4 to 5.5 standard errors.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp.curriculum import central, clipped_sum, private
from curriculumdp.curriculum.central import CentralPhase
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.world import World
from tests.support.one_step import nobody
from tests.support.runs import SECRET, bare_run, tiny

UNITS, STEPS = 300, 1200
RATES = {"private": 0.12, "central": 0.1}
CHANGES = {
    "data__units": UNITS,
    "private__sample_rate": RATES["private"],
    "central__sample_rate": RATES["central"],
}


@dataclass
class Watch:
    """The units that each microbatch or query took, and the rate that was charged for each step."""

    taken: list[np.ndarray]
    charged: list[float]


def watch_rows(patch: pytest.MonkeyPatch) -> Watch:
    """Steps that do all that they do but gradients, charges and updates; and who was in them."""
    seen = Watch([], [])

    def drawn(_: ImageSet, units: Tensor, *__: object) -> None:
        seen.taken.append(units.numpy().copy())

    def queried(query: central.CentralQuery, _: ImageSet, units: Tensor) -> Tensor:
        seen.taken.append(units.numpy().copy())
        return torch.zeros(query.classes * query.pixels, dtype=torch.int64)

    def charged(_: Run, release: PrivacyEvent, *__: object) -> bytes:
        seen.charged.append(release.sample_rate)
        return bytes(32)

    patch.setattr(private, "draw_batch", drawn)
    patch.setattr(clipped_sum.Microbatch, "add", lambda *_: None)
    patch.setattr(PrivatePhase, "figures", lambda *_: {})
    patch.setattr(PrivatePhase, "update", lambda *_: None)
    patch.setattr(central, "query_sum", queried)
    patch.setattr(Run, "charge", charged)
    return seen


def rows_of_steps(
    kind: type[CentralPhase] | type[PrivatePhase],
    steps: int,
    *,
    rank: int = 0,
    size: int = 1,
    images: ImageSet | None = None,
    incarnation: str = "",
    secret: bytes = SECRET,
) -> list[np.ndarray]:
    """The units, padding included, that each of the real steps 0, 1, … takes on one rank of a world."""
    world = World(rank, size, torch.device("cpu"))
    run, state = bare_run(images or nobody(UNITS), world, tiny(Path("unused")), secret)
    run.config = tiny(Path("unused"), **CHANGES)
    rows = tuple(replace(row, sample_rate=RATES.get(row.name)) for row in run.plan.phases)
    run.plan = replace(run.plan, phases=rows)  # other rates without solving for their noise
    run.incarnation = incarnation
    phase, found = kind(run), []
    with pytest.MonkeyPatch.context() as patch:
        seen = watch_rows(patch)
        for step in range(steps):
            seen.taken.clear()
            phase.step(run, state, step)
            found.append(np.concatenate([np.zeros(0, dtype=np.int64), *seen.taken]))
    assert seen.charged == [phase.event.sample_rate] * steps
    return found


def table(rows: list[np.ndarray]) -> np.ndarray:
    """bool [steps, UNITS]; no unit is in one step twice."""
    included = np.zeros((len(rows), UNITS), bool)
    for step, taken in enumerate(rows):
        units = taken[taken >= 0]
        assert len(np.unique(units)) == len(units), f"a unit is in step {step} twice"
        included[step, units] = True
    return included


@dataclass(frozen=True)
class Included:
    rate: float
    table: np.ndarray

    @property
    def centred(self) -> np.ndarray:
        """Mean 0 and variance 1 under the promised rate."""
        return (self.table - self.rate) / math.sqrt(self.rate * (1 - self.rate))


@pytest.fixture(scope="module", params=["private", "central"])
def included(request: pytest.FixtureRequest, solve_once: None) -> Included:
    return sampled(request.param)


def sampled(name: str) -> Included:
    kind = {"private": PrivatePhase, "central": CentralPhase}[name]
    return Included(RATES[name], table(rows_of_steps(kind, STEPS)))


def test_every_unit_is_in_a_step_at_the_rate_that_is_charged(included):
    error = math.sqrt(included.rate * (1 - included.rate) / STEPS)
    z = (included.table.mean(0) - included.rate) / error
    assert abs(included.table.mean() - included.rate) < 4 * error / math.sqrt(UNITS)
    assert np.abs(z).max() < 4.5
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / UNITS)


def test_the_number_of_units_in_a_step_has_the_binomials_variance(included):
    """A batch of a fixed size, or one that an epoch's shuffle deals out, has none."""
    sizes = included.table.sum(1)
    variance = UNITS * included.rate * (1 - included.rate)
    assert abs(sizes.mean() - UNITS * included.rate) < 4 * math.sqrt(variance / STEPS)
    assert abs(sizes.var() / variance - 1) < 4 * math.sqrt(2 / STEPS)


def test_two_units_are_in_a_step_independently(included):
    products = included.centred.T @ included.centred / math.sqrt(STEPS)
    pairs = products[np.triu_indices(UNITS, 1)]
    assert np.abs(pairs).max() < 5.5
    assert abs(pairs.mean()) < 4 / math.sqrt(len(pairs))
    assert abs((pairs**2).mean() - 1) < 4 * math.sqrt(2 / len(pairs))


def test_steps_are_independent_at_every_lag(included):
    """An epoch's shuffle shows as a negative correlation within the epoch and a positive one after it."""
    width = 1 << (2 * STEPS).bit_length()
    spectrum = np.abs(np.fft.rfft(included.centred, n=width, axis=0)) ** 2
    by_unit = np.fft.irfft(spectrum, axis=0)[1 : STEPS // 2]  # Σ over steps, by lag and unit
    steps = STEPS - np.arange(1, STEPS // 2)
    lags = by_unit.sum(1) / np.sqrt(steps * UNITS)
    assert np.abs(lags).max() < 5.0
    assert abs((lags**2).mean() - 1) < 4 * math.sqrt(2 / len(lags))
    assert (
        np.abs(by_unit / np.sqrt(steps)[:, None]).max() < 7.0
    )  # 180,000 sums, with the tails of a skew product


def test_phases_and_incarnations_are_independent():
    samples = [
        (table(rows_of_steps(kind, 100, incarnation=incarnation)) - rate) / math.sqrt(rate * (1 - rate))
        for kind, rate in ((PrivatePhase, RATES["private"]), (CentralPhase, RATES["central"]))
        for incarnation in ("", "one", "two")
    ]
    flat = np.stack([sample.ravel() for sample in samples])
    products = flat @ flat.T / math.sqrt(flat.shape[1])
    np.fill_diagonal(products, 0)
    assert np.abs(products).max() < 5.0


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_share_each_steps_sample_without_a_gap_or_a_duplicate(size):
    alone = rows_of_steps(PrivatePhase, 20)
    shares = [rows_of_steps(PrivatePhase, 20, rank=rank, size=size) for rank in range(size)]
    for step, whole in enumerate(alone):
        together = np.sort(np.concatenate([share[step] for share in shares]))
        assert np.array_equal(together, np.sort(whole)), "rows or padding differ"


def test_only_rank_0_queries_central_images():
    alone = rows_of_steps(CentralPhase, 5)
    shares = [rows_of_steps(CentralPhase, 5, rank=rank, size=3) for rank in range(3)]
    assert all(np.array_equal(mine, whole) for mine, whole in zip(shares[0], alone, strict=True))
    assert not any(len(taken) for share in shares[1:] for taken in share)


def test_who_is_in_a_step_does_not_depend_on_what_anybody_owns(digits):
    first = ImageSet(*(part[:UNITS] for part in (digits.images, digits.labels, digits.units)), UNITS)
    for kind in (PrivatePhase, CentralPhase):
        rows = [
            rows_of_steps(kind, 5, images=images) for images in (first, first.without_unit(7), nobody(UNITS))
        ]
        for one, two, three in zip(*rows, strict=True):
            assert np.array_equal(one, two)
            assert np.array_equal(one, three)


def test_a_step_done_again_takes_the_same_units():
    assert all(map(np.array_equal, rows_of_steps(PrivatePhase, 8), rows_of_steps(PrivatePhase, 8)))


@pytest.mark.parametrize("kind", [PrivatePhase, CentralPhase])
def test_rows_come_from_the_secret_and_not_from_what_the_config_says(kind):
    """Two runs of one config and seed: who is in their steps is independent."""
    name = "private" if kind is PrivatePhase else "central"
    one, other = (
        Included(RATES[name], table(rows_of_steps(kind, 100, secret=secret))).centred
        for secret in (SECRET, bytes(range(1, 33)))
    )
    assert abs(float((one * other).sum())) < 5.0 * math.sqrt(one.size)
