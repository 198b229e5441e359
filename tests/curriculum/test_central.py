"""Central images: one noisy vector a query, charged once, over public denominators, the same on every rank."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp.curriculum import central
from curriculumdp.curriculum.central import CentralPhase, CentralQuery, clip_norm_of, images_of_sum, query_sum
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.grid_noise import from_grid
from curriculumdp.world import World
from dpkernels.grid import GRID
from tests.support.one_step import charged_run, noisy_sum_of_query
from tests.support.runs import bare_run, in_world, tiny

ALONE = World(0, 1, torch.device("cpu"))
LIMIT = 2**72


def query(images: ImageSet, **changes: object) -> CentralQuery:
    return CentralPhase(bare_run(images, ALONE, tiny(Path("unused"), **changes))[0]).query


def on_grid(values: Tensor, clip_norm: float) -> Tensor:
    return (values * (GRID / clip_norm)).round().to(torch.int64)


def coloured() -> ImageSet:
    """Twelve units of one to three RGB images, the last of them in class 1 alone."""
    rng = np.random.default_rng(3)
    units = np.repeat(np.arange(12), rng.integers(1, 4, 12)).astype(np.int64)
    images = rng.integers(0, 256, (len(units), 3, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 2, len(units)).astype(np.int64)
    return ImageSet(images, np.where(units == 11, 1, labels), units, 12)


def as_query(statistic: str, **changes: object) -> CentralQuery:
    """A query over `coloured`."""
    made = CentralQuery(statistic, 4, 3, 2, 5, 100.0, 0.0, (6.0, 6.0), 1.0)
    return replace(made, **changes)


def test_a_mean_is_the_sum_over_the_expected_count_whatever_was_sampled(digits):
    """1437 units in 10 classes at rate 0.1: every class's sum is divided by 14.37."""
    asked = query(digits)
    assert asked.denominators == pytest.approx((14.37,) * 10)
    values = torch.linspace(-3, 3, 640, dtype=torch.float64)
    made = images_of_sum(asked, on_grid(values, asked.clip_norm), 8, 1)
    expected = (values / 14.37 + 0.5).clamp(0, 1).view(10, 1, 8, 8) * 255
    torch.testing.assert_close(made.double(), expected.round(), rtol=0, atol=1)


def test_public_class_counts_are_the_denominators_and_an_empty_class_has_the_floor(digits):
    counts = [0, 37, *[175] * 8]
    asked = query(digits, data__class_counts=counts)
    assert asked.denominators == pytest.approx([0.1 * count for count in counts])
    values = torch.full((10, 64), 2.0, dtype=torch.float64)
    made = images_of_sum(asked, on_grid(values.flatten(), asked.clip_norm), 8, 1)[:, 0, 0, 0] / 255
    expected = [2 / max(1.0, 0.1 * count) + 0.5 for count in counts]
    assert made.tolist() == pytest.approx([min(1.0, value) for value in expected], abs=0.003)


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({}, 1.0),
        ({"data__class_counts": [144] * 9 + [141]}, 0.0),
        ({"central__statistic": "mode"}, 0.0),
    ],
)
def test_counts_are_queried_unless_they_are_public_or_the_config_says_otherwise(digits, changes, weight):
    assert query(digits, central__count_weight=None, **changes).count_weight == weight
    assert query(digits, central__count_weight=0.0, **changes).count_weight == 0.0


def test_a_rare_class_is_not_grey_and_a_common_one_not_glaring_by_default(digits):
    """At 95 to 5, without noise: the central images are the means of their classes."""
    rows = np.concatenate([np.flatnonzero(digits.labels != 8), np.flatnonzero(digits.labels == 8)[:68]])
    images = ImageSet(
        digits.images[rows], (digits.labels[rows] == 8).astype(np.int64), np.arange(len(rows)), len(rows)
    )
    asked = query(images, data__classes=2, data__units=len(rows), central__count_weight=None)
    made = images_of_sum(asked, query_sum(asked, images, torch.arange(len(rows))), 8, 1).numpy() / 255
    true = np.stack([images.images[images.labels == label].mean(0) / 255 for label in (0, 1)])
    assert np.abs(made - true).max() < 0.02


def test_noisy_counts_are_the_denominators_where_asked_for_never_below_the_floor(digits):
    asked = query(digits, central__count_weight=2.0, central__count_floor=3.0)
    values = torch.cat([torch.full((640,), 1.5), torch.tensor([40.0, 6.0, 2.0, 0.0, -50.0, *[20.0] * 5])])
    made = images_of_sum(asked, on_grid(values.double(), asked.clip_norm), 8, 1)[:, 0, 0, 0] / 255
    counts = [20.0, 3.0, 3.0, 3.0, 3.0, *[10.0] * 5]
    assert made.tolist() == pytest.approx([1.5 / count + 0.5 for count in counts], abs=0.003)


def test_a_units_vector_is_the_mean_of_its_images_by_class():
    data = coloured()
    vectors = central.unit_vectors(as_query("mean", count_weight=3.0), data, torch.arange(12))
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(data.images).double() / 255, 4) - 0.5
    for unit in range(12):
        mine = torch.from_numpy(data.units == unit)
        labels = torch.from_numpy(data.labels)
        blocks = [small[mine & (labels == k)].sum(0).flatten() / mine.sum() for k in (0, 1)]
        shares = [3.0 * int((mine & (labels == k)).sum()) / int(mine.sum()) for k in (0, 1)]
        expected = torch.cat([*blocks, torch.tensor(shares, dtype=torch.float64)])
        torch.testing.assert_close(vectors[unit], expected, rtol=1e-12, atol=1e-12)


def test_a_modes_vector_is_the_mean_of_its_images_one_hots_in_every_channel():
    data = coloured()
    vectors = central.unit_vectors(as_query("mode"), data, torch.arange(12)).view(12, 2, 3 * 16, 5)
    torch.testing.assert_close(vectors.sum((1, 3)), torch.ones(12, 48, dtype=torch.float64))
    single = next(u for u in range(12) if data.counts[u] == 1)
    assert float(vectors[single].norm()) == pytest.approx(math.sqrt(48)), "one image: √(channels·H·W)"


def test_the_mode_is_each_pixels_commonest_bin(digits):
    asked = query(digits, central__statistic="mode", central__bins=4)
    votes = torch.zeros(10, 64, 4, dtype=torch.float64)
    votes[..., 0], votes[3, :, 2] = 1.0, 5.0
    made = images_of_sum(asked, on_grid(votes.flatten(), asked.clip_norm), 8, 1)
    assert made[3].unique().tolist() == [round((2 + 0.5) / 4 * 255)]
    assert made[4].unique().tolist() == [round(0.5 / 4 * 255)]


@pytest.mark.parametrize("statistic", ["mean", "mode"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_default_clip_norm_is_what_one_images_pixels_can_reach(statistic, channels):
    """A colour histogram has three one-hots a pixel: √(channels·H·W), not √(H·W)."""
    config = tiny(Path("unused"), central__statistic=statistic, data__channels=channels)
    assert config.central is not None
    widest = math.sqrt(channels * 64) * (1.0 if statistic == "mode" else 0.5)
    assert clip_norm_of(config.central, config.data) == pytest.approx(widest)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
@pytest.mark.parametrize("clip_norm", [1e-3, 2.0, 100.0])
def test_no_unit_of_coloured_images_moves_a_query_by_more_than_its_clip_norm(statistic, clip_norm):
    data, asked = coloured(), as_query(statistic, clip_norm=clip_norm, count_weight=7.0)
    whole = query_sum(asked, data, torch.arange(12))
    for unit in range(12):
        moved = whole - query_sum(asked, data.without_unit(unit), torch.arange(12))
        squared = sum(int(n) ** 2 for n in moved.tolist())
        assert 0 < squared <= LIMIT
        if clip_norm < 0.1:
            assert squared > 0.998 * LIMIT, "the clip norm bites: all of it is used"


def test_a_querys_sum_is_exact_in_any_order_and_over_any_packing(digits, monkeypatch):
    asked = query(digits)
    units = torch.arange(300)
    whole = query_sum(asked, digits, units)
    assert whole.dtype == torch.int64
    assert torch.equal(query_sum(asked, digits, units.flip(0)), whole)
    parts = [query_sum(asked, digits, part) for part in units.split(7)]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    monkeypatch.setattr(central, "UNITS_AT_ONCE", 11)
    assert torch.equal(query_sum(asked, digits, units), whole)


def test_a_query_of_nobody_is_zero(digits):
    for changes in ({}, {"central__statistic": "mode"}, {"central__count_weight": 1.0}):
        total = query_sum(query(digits, **changes), digits, torch.zeros(0, dtype=torch.int64))
        assert total.dtype == torch.int64
        assert not total.any()


@pytest.mark.parametrize("changes", [{}, {"central__count_weight": 1.0}, {"central__statistic": "mode"}])
def test_an_empty_class_gets_noise_like_any_other_and_no_nan(tmp_path, digits, changes):
    kept = digits.labels != 4
    data = ImageSet(digits.images[kept], digits.labels[kept], digits.units[kept], digits.unit_count)
    run, state = charged_run(data, tiny(tmp_path, **changes), tmp_path)
    phase = CentralPhase(run)
    for step in range(2):
        phase.step(run, state, step)
    assert state.central.labels.tolist() == list(range(10)) * 2
    assert state.central.images.dtype == torch.uint8
    assert len(state.central.images[4].unique()) > 1, "an empty class would show by having no noise"


def test_a_query_is_charged_once_with_its_own_rate_and_noise_before_the_next(tmp_path, digits):
    run, state = charged_run(digits, tiny(tmp_path), tmp_path)
    phase = CentralPhase(run)
    assert run.ledger is not None
    for step in range(3):
        phase.step(run, state, step)
        entries = [entry for entry in run.ledger.entries() if entry["kind"] == "charge"]
        assert [entry["step"] for entry in entries] == list(range(step + 1))
        assert entries[-1]["sample_rate"] == run.config.central.sample_rate
        assert entries[-1]["noise_multiplier"] == run.config.central.noise_multiplier
        assert entries[-1]["clip_norm"] == phase.query.clip_norm
    assert len({entry["sum_mac"] for entry in entries}) == 3, "each query has its own sample"
    assert run.ledger.events()[0].count == 3


def test_what_a_query_adds_to_its_sum_is_its_noise(tmp_path, digits, monkeypatch):
    """noisy − sum is N(0, (σC)²) over the whole vector, counts included, whoever was sampled."""
    run, state = charged_run(digits, tiny(tmp_path, central__count_weight=2.0), tmp_path)
    phase = CentralPhase(run)
    sums: list[Tensor] = []
    original = central.query_sum
    monkeypatch.setattr(central, "query_sum", lambda *given: (sums.append(original(*given)), sums[-1])[1])
    added = torch.stack([noisy_sum_of_query(phase, run, state, step) - sums[step] for step in range(40)])
    z = from_grid(added, 1.0) / phase.event.noise_multiplier
    assert added.shape[1] == 650
    assert abs(float(z.square().mean()) - 1) < 4.5 * math.sqrt(2 / z.numel())
    assert abs(float(z[:, 640:].square().mean()) - 1) < 4.5 * math.sqrt(2 / 400)
    assert all(total.any() for total in sums)


def queries_of_rank(world: World, folder: Path, images: ImageSet) -> None:
    run, state = charged_run(images, tiny(folder), folder / "ledger", world)
    phase = CentralPhase(run)
    for step in range(2):
        phase.step(run, state, step)
    torch.save(state.central.images, folder / f"{world.size}-{world.rank}.pt")


def test_every_rank_has_the_central_images_of_one_process(tmp_path, digits):
    """A rank's own draw of them is a release of its own: N ranks would show N noisy sums for one charge."""
    (tmp_path / "one").mkdir()
    queries_of_rank(ALONE, tmp_path / "one", digits)
    assert in_world(3, lambda world: queries_of_rank(world, tmp_path, digits)) == [0, 0, 0]
    expected = torch.load(tmp_path / "one" / "1-0.pt", weights_only=True)
    for rank in range(3):
        assert torch.equal(torch.load(tmp_path / f"3-{rank}.pt", weights_only=True), expected)
