"""P1, sensitivity by replay: one unit more or less moves the un-noised sum of the real step by at most C.

The step runs on D (a place owns nothing) and on D plus one hostile unit in that place, with every draw replayed.
Sums are integers on the grid, so "at most C" is Σn² ≤ 2⁷², checked in exact arithmetic.
"""

import dataclasses

import numpy as np
import pytest
import torch

from curriculumdp.clipping.clip import add_clipped_rows
from curriculumdp.curriculum import central, private
from curriculumdp.curriculum.central import CentralPhase, query_sum
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.data.images import ImageSet
from curriculumdp.world import World

PLACE = 7
ROWS = np.array([1, 3, 5, 7, 8, 11, 12, 20, 21, 30, 31], dtype=np.int64)
LIMIT = 2**72


def squared_steps(difference: torch.Tensor) -> int:
    """Σn² in exact integers."""
    return sum(int(n) ** 2 for n in difference.flatten().tolist())


def full_sum(make_run, images: ImageSet, worlds: int, step: int = 0, **changes: object) -> torch.Tensor:
    """The un-noised sum of one real step, over the ranks of a world of `worlds`."""
    total = None
    for rank in range(worlds):
        run, state = make_run(images, World(rank, worlds, torch.device("cpu")), **changes)
        part, _ = PrivatePhase(run).clipped_sum(run, state, step, ROWS)
        total = part if total is None else total + part
    assert total is not None
    return total


def make_hostile(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Multiplies the pixels of the unit in PLACE by `factor` on their way into the network."""
    original = private.draw_batch

    def hostile(images: ImageSet, units: torch.Tensor, draws: int, *rest: object) -> private.UnitBatch:
        batch = original(images, units, draws, *rest)
        mine = (units == PLACE).repeat_interleave(draws) & bool(images.counts[PLACE])
        pixels = torch.where(mine[:, None, None, None], batch.images * factor, batch.images)
        return dataclasses.replace(batch, images=pixels)

    monkeypatch.setattr(private, "draw_batch", hostile)


@pytest.mark.parametrize("factor", [1.0, 1e4, 1e18, 3e38, float("inf"), float("nan")])
def test_a_hostile_unit_moves_the_sum_by_at_most_the_clip_norm(monkeypatch, make_run, digits, factor):
    make_hostile(monkeypatch, factor)
    moved = full_sum(make_run, digits, 1) - full_sum(make_run, digits.without_unit(PLACE), 1)
    assert squared_steps(moved) <= LIMIT
    if factor in (1.0, 1e4):
        assert squared_steps(moved) > LIMIT // 10000, "the test has no power: the unit did not count at all"


@pytest.mark.parametrize("worlds", [1, 2, 3])
@pytest.mark.parametrize(("microbatch", "draws"), [(4, 1), (4, 3), (8, 1), (16, 2)])
def test_the_bound_holds_whatever_the_world_the_packing_and_the_draws(
    make_run, digits, worlds, microbatch, draws
):
    changes = {"compute__microbatch": microbatch, "private__draws": draws}
    moved = full_sum(make_run, digits, worlds, **changes) - full_sum(
        make_run, digits.without_unit(PLACE), worlds, **changes
    )
    assert 0 < squared_steps(moved) <= LIMIT


def test_many_copies_of_an_image_in_one_unit_count_once(make_run, digits):
    empty = digits.without_unit(PLACE)
    hoard = empty.with_unit(
        PLACE, np.repeat(digits.images[:1], 500, axis=0), np.repeat(digits.labels[:1], 500)
    )
    moved = full_sum(make_run, hoard, 1) - full_sum(make_run, empty, 1)
    assert 0 < squared_steps(moved) <= LIMIT


@pytest.mark.parametrize("clip_norm", [1e-3, 1e-6, 10.0])
def test_the_bound_holds_at_other_clip_norms(make_run, digits, clip_norm):
    changes = {"private__clip_norm": clip_norm}
    moved = full_sum(make_run, digits, 1, **changes) - full_sum(
        make_run, digits.without_unit(PLACE), 1, **changes
    )
    assert 0 < squared_steps(moved) <= LIMIT
    if clip_norm < 1:
        assert squared_steps(moved) > 0.998 * LIMIT, "a unit over the bound is scaled to it, not further"


def test_padding_and_empty_places_contribute_exactly_nothing(make_run, digits):
    run, state = make_run(digits.without_unit(PLACE), World(0, 1, torch.device("cpu")))
    total, _ = PrivatePhase(run).clipped_sum(run, state, 0, np.array([PLACE], dtype=np.int64))
    assert not total.any()


def test_no_rows_give_a_zero_sum(make_run, digits):
    run, state = make_run(digits, World(0, 1, torch.device("cpu")))
    total, _ = PrivatePhase(run).clipped_sum(run, state, 0, ROWS[:0])
    assert total.shape == state.weights.shape
    assert not total.any()


def test_taking_a_unit_out_changes_no_other_units_draws_or_gradient(make_run, digits):
    """Other units' contributions are the same to the bit, so the difference IS one unit's contribution."""
    alone = [full_sum(make_run, digits.without_unit(PLACE), 1)]
    run, state = make_run(digits, World(0, 1, torch.device("cpu")))
    units = torch.from_numpy(ROWS)
    key = run.draws_key("private", 0)
    whole = private.draw_batch(digits, units, 2, key, 0, torch.device("cpu"))
    without = private.draw_batch(digits.without_unit(PLACE), units, 2, key, 0, torch.device("cpu"))
    moved = private.draw_batch(digits, units.flip(0), 2, key, 0, torch.device("cpu"))
    others = (units != PLACE).repeat_interleave(2)
    for name in ("images", "labels", "level", "noise"):
        full = getattr(whole, name)
        assert torch.equal(full[others], getattr(without, name)[others])
        assert torch.equal(full, getattr(moved, name).unflatten(0, (-1, 2)).flip(0).flatten(0, 1))
    phase = PrivatePhase(run)
    both, _ = phase.clipped_sum(run, state, 0, ROWS)
    assert 0 < squared_steps(both - alone[0]) <= LIMIT


def test_a_steps_sum_is_exactly_the_sum_of_what_each_unit_adds_alone(make_run, digits):
    """No mean, no rounding of a sum, nothing of one unit in another's part: to the bit, over two microbatches."""
    changes = {"private__clip_norm": 0.05}
    together = full_sum(make_run, digits, 1, **changes)
    alone = torch.zeros_like(together)
    for unit in ROWS:
        kept = digits.units == unit
        only = ImageSet(digits.images[kept], digits.labels[kept], digits.units[kept], digits.unit_count)
        alone += full_sum(make_run, only, 1, **changes)
    assert torch.equal(alone, together)


VARIED = {"private__noise_levels": "spread", "data__flip": True, "data__shift": 1, "private__draws": 3}


def shared_out(digits: ImageSet) -> ImageSet:
    """The digits as people of several images: every place owns from one to four."""
    owners = np.arange(len(digits.labels)) % 577
    return ImageSet(digits.images, digits.labels, owners, digits.unit_count)


@pytest.mark.parametrize(("microbatch", "worlds"), [(1, 1), (4, 1), (4, 2), (16, 3)])
def test_varied_draws_of_people_with_several_images_add_one_persons_vector_and_no_more(
    make_run, digits, microbatch, worlds
):
    """Spread noise levels, distinct images, mirrored and moved: the sum is still what each person adds alone."""
    changes = VARIED | {"compute__microbatch": microbatch}
    images = shared_out(digits)
    mine = images.units == PLACE
    only = ImageSet(images.images[mine], images.labels[mine], images.units[mine], images.unit_count)
    whole, without, own = (
        full_sum(make_run, some, worlds, **changes) for some in (images, images.without_unit(PLACE), only)
    )
    assert torch.equal(whole - without, own)
    assert 0 < squared_steps(own) <= LIMIT
    assert not torch.equal(whole, full_sum(make_run, images, worlds, compute__microbatch=microbatch))


def let_arithmetic_depend_on_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each place in a microbatch an arithmetic of its own, as kernels may: then a unit that moves shows."""
    original = private.draw_batch

    def placed(images: ImageSet, units: torch.Tensor, draws: int, *rest: object) -> private.UnitBatch:
        batch = original(images, units, draws, *rest)
        places = torch.arange(len(units)).repeat_interleave(draws)
        return dataclasses.replace(batch, images=batch.images * (1 + places / 64)[:, None, None, None])

    monkeypatch.setattr(private, "draw_batch", placed)


@pytest.mark.parametrize(("microbatch", "worlds"), [(1, 1), (3, 2), (4, 1), (4, 3), (16, 1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_sums_of_two_neighbours_differ_by_exactly_the_units_own_vector(
    monkeypatch, make_run, digits, precision, microbatch, worlds
):
    """A removed unit's slot is still sampled and packed: nobody else moves, whatever arithmetic a place has."""
    let_arithmetic_depend_on_the_place(monkeypatch)

    def in_precision(*given: object, **changes: object) -> object:
        run, state = make_run(*given, **changes)
        compute = run.config.compute.model_copy(
            update={"precision": precision}
        )  # a config asks for a GPU first
        run.config = run.config.model_copy(update={"compute": compute})
        return run, state

    mine = digits.units == PLACE
    only = ImageSet(digits.images[mine], digits.labels[mine], digits.units[mine], digits.unit_count)
    whole, without, own = (
        full_sum(in_precision, images, worlds, compute__microbatch=microbatch)
        for images in (digits, digits.without_unit(PLACE), only)
    )
    assert own.any()
    assert torch.equal(whole - without, own)


def test_a_steps_sum_has_nothing_of_the_step_before(make_run, digits):
    run, state = make_run(digits, World(0, 1, torch.device("cpu")))
    phase = PrivatePhase(run)
    first, _ = phase.clipped_sum(run, state, 0, ROWS)
    kept = first.clone()
    again, _ = phase.clipped_sum(run, state, 0, ROWS)
    nothing, _ = phase.clipped_sum(run, state, 1, ROWS[:0])
    assert torch.equal(again, kept)
    assert torch.equal(first, kept), "a sum that was handed out is written over"
    assert not nothing.any()


@pytest.mark.parametrize("clip_norm", [1.0, 0.3, 7.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_many_clipped_vectors_none_exceeds_the_bound_by_a_single_step_of_the_grid(clip_norm, dtype):
    """Scaling to C itself would let rounding carry about half of them over it: the margin is what holds."""
    generator = torch.Generator().manual_seed(5)
    present = torch.ones(1, dtype=torch.bool)
    for width in (1, 3, 700, 3000):
        for row in torch.randn(40, width, dtype=dtype, generator=generator) * (3 * clip_norm):
            total = torch.zeros(width, dtype=torch.int64)
            add_clipped_rows(row[None].clone(), total, clip_norm, present)
            assert squared_steps(total) <= LIMIT


@pytest.mark.parametrize(("statistic", "count_weight"), [("mean", 0.0), ("mean", 2.0), ("mode", 0.0)])
def test_one_unit_moves_a_central_query_by_at_most_its_clip_norm(make_run, digits, statistic, count_weight):
    changes = {"central__statistic": statistic, "central__count_weight": count_weight, "central__bins": 4}
    empty = digits.without_unit(PLACE)
    many = empty.with_unit(
        PLACE, np.full((30, 1, 8, 8), 255, dtype=np.uint8), np.arange(30, dtype=np.int64) % 10
    )
    white = empty.with_unit(PLACE, np.full((1, 1, 8, 8), 255, dtype=np.uint8), np.zeros(1, dtype=np.int64))
    run, _ = make_run(digits, World(0, 1, torch.device("cpu")), **changes)
    query = CentralPhase(run).query
    rows = torch.from_numpy(ROWS)
    base = query_sum(query, empty, rows)
    for neighbour in (digits, many, white):
        moved = query_sum(query, neighbour, rows) - base
        assert 0 < squared_steps(moved) <= LIMIT


def test_a_central_query_clips_all_classes_as_one_vector(make_run, digits):
    run, _ = make_run(digits, World(0, 1, torch.device("cpu")), central__clip_norm=0.1)
    vectors = central.unit_vectors(CentralPhase(run).query, digits, torch.from_numpy(ROWS))
    assert (vectors.norm(dim=1) > 0.1).all(), "the clip norm must bite for this test to mean anything"
    moved = query_sum(CentralPhase(run).query, digits, torch.tensor([PLACE]))
    assert 0.998 * LIMIT < squared_steps(moved) <= LIMIT
