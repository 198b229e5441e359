"""A unit's draws repeat each other as little as they can, each is as it would be alone, and nobody else's matter."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp.curriculum.batch import PLAIN, UnitBatch, draw_batch
from curriculumdp.curriculum.unit_draws import Variety, distinct_picks, moved, moves, spread_levels
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.streams import uniforms, unit_words

KEY, CPU = bytes(range(32)), torch.device("cpu")
ALL = Variety(spread=True, flip=True, shift=2)
VARIETIES = [PLAIN, Variety(spread=True), Variety(flip=True), Variety(shift=1), ALL]
UNITS = torch.tensor([1, 3, 5, 7, 8, 11, 12, 20, 21, 30, 31])
PLACE = 7


@pytest.fixture(scope="module")
def patients(digits: ImageSet) -> ImageSet:
    """Units of 0, 1, 2, …, 9, 0, 1, … images each, in no order."""
    owners = np.repeat(np.arange(400), np.arange(400) % 10)[: len(digits.labels)]
    owners = np.random.default_rng(3).permutation(owners)
    return ImageSet(digits.images[: len(owners)], digits.labels[: len(owners)], owners, 400)


def drawn(images: ImageSet, units: Tensor, draws: int, variety: Variety, step: int = 4) -> UnitBatch:
    return draw_batch(images, units, draws, KEY, step, CPU, 0.25, 10, variety)


def by_unit(batch: UnitBatch) -> dict[str, Tensor]:
    units = len(batch.present)
    return {name: tensor.unflatten(0, (units, -1)) for name, tensor in batch.tensors().items()}


@pytest.mark.parametrize("variety", VARIETIES, ids=str)
@pytest.mark.parametrize("draws", [1, 3, 5])
def test_no_units_draws_depend_on_who_else_is_in_the_set_the_sample_or_the_microbatch(
    patients, variety, draws
):
    whole = by_unit(drawn(patients, UNITS, draws, variety))
    turned = by_unit(drawn(patients, UNITS.flip(0), draws, variety))
    owns_nothing = by_unit(drawn(patients.without_unit(PLACE), UNITS, draws, variety))
    not_sampled = by_unit(drawn(patients, UNITS[UNITS != PLACE], draws, variety))
    padded = by_unit(drawn(patients, torch.cat([UNITS[4:6], torch.tensor([-1, -1])]), draws, variety))
    for name, full in whole.items():
        assert torch.equal(turned[name].flip(0), full), name
        assert torch.equal(owns_nothing[name][UNITS != PLACE], full[UNITS != PLACE]), name
        assert torch.equal(not_sampled[name], full[UNITS != PLACE]), name
        assert torch.equal(padded[name][:2], full[4:6]), name


@pytest.mark.parametrize("variety", VARIETIES[1:], ids=str)
def test_a_unit_that_owns_nothing_shows_nothing_whatever_the_variety(patients, variety):
    batch = by_unit(drawn(patients, torch.tensor([10, 3, -1]), 3, variety))
    assert batch["present"].flatten().tolist() == [False, True, False]
    assert not batch["images"][[0, 2]].any()
    assert not batch["labels"][[0, 2]].any()


def test_an_option_changes_what_it_names_alone(patients):
    plain = drawn(patients, UNITS, 3, PLAIN).tensors()
    for variety, changed in [(Variety(True), {"level"}), (Variety(False, True, 2), {"images"})]:
        other = drawn(patients, UNITS, 3, variety).tensors()
        assert {name for name in plain if not torch.equal(plain[name], other[name])} == changed


# --- which images


def picks(count: int, draws: int, trials: int = 1) -> Tensor:
    """The picks of `trials` units of `count` images each: int64 [trials, draws]."""
    words = unit_words(KEY, count, torch.arange(trials), draws, 1)[..., 0]
    return distinct_picks(uniforms(words), torch.full((trials,), count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("draws", [1, 2, 4, 9])
def test_a_unit_shows_distinct_images_as_far_as_it_has_them(count, draws):
    for row in picks(count, draws, 60):
        shown = torch.bincount(row, minlength=count)
        assert len(shown) == count
        assert int(shown.max() - shown.min()) <= 1


@pytest.mark.parametrize(("count", "draws"), [(2, 3), (3, 4), (5, 3), (7, 16)])
def test_each_draw_shows_each_image_equally_often_and_so_does_each_pair_of_draws(count, draws):
    """The mean over a unit's draws is then an unbiased mean over its images, whatever those are."""
    trials = 20_000
    found = picks(count, draws, trials)
    shares = torch.stack([(found == image).double().mean(0) for image in range(count)])
    assert float((shares - 1 / count).abs().max()) < 4.5 * math.sqrt(1 / count / trials)
    for first, second in itertools.combinations(range(min(draws, count)), 2):
        pairs = torch.bincount(found[:, first] * count + found[:, second], minlength=count**2)
        expected = trials / count / (count - 1)
        off = pairs.view(count, count)[~torch.eye(count, dtype=torch.bool)]
        assert float((off - expected).abs().max()) < 4.5 * math.sqrt(expected)


def test_the_mean_over_distinct_images_is_unbiased_and_closer_to_the_mean_over_all():
    values = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for draws, left in [(4, 4 / 7), (6, 2 / 7), (8, 0.0), (12, 4 / 7 * 4 / 12)]:
        means = values[picks(8, draws, 20_000)].mean(1)
        independent = float(values.var(correction=0)) / draws
        assert abs(float(means.mean() - values.mean())) < 4 * math.sqrt(independent / 20_000)
        assert float(means.var()) == pytest.approx(independent * left, rel=0.1, abs=1e-12)


def test_one_draw_and_one_image_are_drawn_as_ever():
    words = unit_words(KEY, 0, torch.arange(500), 1, 1)[..., 0]
    counts = torch.arange(500) % 40
    as_ever = (uniforms(words) * counts[:, None]).long()
    assert torch.equal(distinct_picks(uniforms(words), counts), as_ever)
    assert not picks(1, 7, 50).any()


def test_the_largest_and_smallest_words_stay_within_the_units_images():
    extremes = uniforms(torch.tensor([[0, 2**32 - 1] * 6, [2**32 - 1] * 12]))
    for count in (1, 2, 5, 10**6, 2**31):
        found = distinct_picks(extremes, torch.tensor([count, count]))
        assert 0 <= int(found.min()) <= int(found.max()) < count


def test_a_units_draws_show_its_own_images_with_their_labels(patients):
    batch = draw_batch(patients, torch.arange(60), 4, KEY, 0, CPU)
    rows = [np.flatnonzero(patients.units == unit) for unit in range(60)]
    for unit, (images, labels) in enumerate(zip(*map(by_unit(batch).get, ("images", "labels")), strict=True)):
        own = {(patients.images[row].tobytes(), int(patients.labels[row])) for row in rows[unit]}
        bytes_ = [((image + 1) * 127.5).round().to(torch.uint8).numpy().tobytes() for image in images]
        shown = set(zip(bytes_, labels.tolist(), strict=True))
        assert shown <= own or not own
        assert len(shown) == min(4, len(own)) or not own


# --- noise levels


def quantiles(units: Tensor, draws: int, step: int) -> Tensor:
    words = unit_words(KEY, step, units, draws, 4)[..., 3]
    return torch.special.ndtr(spread_levels(words, units, KEY, step).double())


@pytest.mark.parametrize("draws", [1, 2, 4, 32])
def test_a_units_draws_take_each_stratum_once_in_any_order(draws):
    found = quantiles(torch.arange(300), draws, 5)
    strata = (found * draws).long()
    assert torch.equal(strata.sort(1).values, torch.arange(draws).expand(300, -1))
    if draws > 1:
        assert len(torch.unique(strata, dim=0)) > 1
        share = float((strata[:, 0] == 0).double().mean())
        assert abs(share - 1 / draws) < 4 * math.sqrt(1 / draws / 300)


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("unit", [0, 59_999])
def test_each_level_of_a_unit_is_uniform_over_steps_and_no_step_repeats_the_last(draws, unit):
    steps = 400
    found = torch.cat([quantiles(torch.tensor([unit]), draws, step) for step in range(steps)])
    for level in found.T:
        ordered = level.sort().values
        distance = (ordered - (torch.arange(steps) + 0.5) / steps).abs().max()
        assert float(distance) < 1.95 / math.sqrt(steps)  # Kolmogorov: 1 in 1000
        lagged = ((level[1:] - 0.5) * (level[:-1] - 0.5)).mean() * 12
        assert abs(float(lagged)) < 4 / math.sqrt(steps)


@pytest.mark.parametrize("every", [1, 2, 7, 10])
def test_a_steps_units_are_spread_evenly_also_within_each_class(every):
    """Along all places and along every tenth (classes that take turns): ten times closer than at random."""
    for step in range(3):
        for first in (every - 1, 1000):
            levels = quantiles(torch.arange(first, first + 1000 * every, every), 1, step).flatten()
            distance = (levels.sort().values - (torch.arange(1000) + 0.5) / 1000).abs().max()
            assert float(distance) < 0.01  # independent: about 0.027


def test_spread_levels_estimate_a_loss_with_less_error():
    """Of a loss that falls with the noise level, averaged over K draws and over a step of 40 % of the units."""
    units = torch.arange(1000)
    spread, independent = [], []
    for step in range(150):
        sampled = unit_words(KEY[::-1], step, units, 1, 1)[:, 0, 0] < 0.4 * 2**32
        spread.append(quantiles(units, 4, step)[sampled].exp().mean())
        independent.append(uniforms(unit_words(KEY, step, units, 4, 1))[sampled].exp().mean())
    kept = torch.stack(spread).std() / torch.stack(independent).std()
    assert float(kept) < 0.35
    alone = torch.stack([quantiles(units[:1], 4, step).exp().mean() for step in range(150)])
    assert float(alone.mean()) == pytest.approx(math.e - 1, abs=0.04)


def test_spread_levels_stay_where_the_loss_is_finite():
    words = torch.arange(4096).expand(3, -1)
    levels = spread_levels(words, torch.tensor([0, 2**31, 2**32 - 2]), KEY, 2**32 - 1)
    assert bool(levels.isfinite().all())
    assert float(levels.abs().max()) < 6.5


# --- mirrored and moved


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 5, 9)])
def test_moved_is_numpys_flip_and_a_crop_of_the_edge_padded_image(size):
    images = torch.rand(60, *size, generator=torch.Generator().manual_seed(2))
    mirrored, down, right = moves(torch.arange(60), 1, KEY, 3, Variety(flip=True, shift=2))
    found = moved(images, mirrored, down, right)
    _, height, width = size
    for image, result, flip, y, x in zip(images, found, mirrored, down, right, strict=True):
        turned = np.flip(image.numpy(), 2) if flip else image.numpy()
        padded = np.pad(turned, ((0, 0), (2, 2), (2, 2)), mode="edge")
        crop = padded[:, 2 - y : 2 - y + height, 2 - x : 2 - x + width]
        assert np.array_equal(result.numpy(), crop)


def test_half_are_mirrored_and_every_shift_is_as_frequent_independently():
    mirrored, down, right = moves(torch.arange(10_000), 2, KEY, 0, Variety(flip=True, shift=1))
    cell = (mirrored.long() * 3 + down + 1) * 3 + right + 1
    shares = torch.bincount(cell, minlength=18) / len(cell)
    assert float((shares - 1 / 18).abs().max()) < 4 * math.sqrt(1 / 18 / len(cell))
    first, second = cell.view(-1, 2).T
    assert float((first == second).double().mean()) == pytest.approx(1 / 18, abs=0.01)


def test_what_is_off_does_not_happen():
    mirrored, down, right = moves(torch.arange(500), 2, KEY, 0, Variety(flip=True))
    assert bool(mirrored.any())
    assert not down.any()
    assert not right.any()
    mirrored, down, right = moves(torch.arange(500), 2, KEY, 0, Variety(shift=3))
    assert not mirrored.any()
    assert sorted(set(down.tolist())) == sorted(set(right.tolist())) == list(range(-3, 4))


def test_steps_keys_and_options_move_a_draw_anew(patients):
    def images(step: int, key: bytes) -> Tensor:
        return draw_batch(patients, UNITS[:1], 1, key, step, CPU, variety=Variety(flip=True, shift=2)).images

    seen = {images(step, key).numpy().tobytes() for step in range(20) for key in (KEY, KEY[::-1])}
    assert len(seen) > 10
