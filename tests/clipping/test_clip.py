"""The clipped sum: every row of `add_clipped_rows`' guarantee, in exact integers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curriculumdp.clipping.clip import ClipResult, add_clipped_rows
from dpkernels.clip_sum import NORM_CHUNK
from dpkernels.grid import AIM, GRID
from dpkernels.limits import MAX_CLIP_NORM, MAX_UNITS, MIN_CLIP_NORM

LIMIT = 2**72
CLIP = 0.75
HOSTILE = [0.0, 1e-320, 1.0, -1.0, 1e150, -1e308, math.inf, -math.inf, math.nan]
WIDTHS = [1, 7, NORM_CHUNK, 3 * NORM_CHUNK + 5]


def squared_steps(total: Tensor) -> int:
    """Σn² in Python's integers, which cannot overflow."""
    return sum(int(n) ** 2 for n in total.tolist())


def added(grads: Tensor, clip_norm: float = CLIP, present: Tensor | None = None) -> tuple[Tensor, ClipResult]:
    """(what the rows add to a sum that is not zero before, the result)."""
    before = torch.arange(grads.shape[1]) * 1000 - 500
    total = before.clone()
    present = torch.ones(len(grads), dtype=torch.bool) if present is None else present
    result = add_clipped_rows(grads.clone(), total, clip_norm, present)
    return total - before, result


def of_norm(norm: float, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One row [1, width] of that norm, or a little off it in fp32."""
    row = torch.randn(1, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (row * (norm / row.norm())).to(dtype)


def grid_steps(values: Tensor) -> Tensor:
    return values.round().long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_gradient_within_the_clip_norm_is_rounded_to_the_grid_unscaled(width, dtype):
    row = of_norm(CLIP * AIM * 0.999, width, dtype)
    total, result = added(row)
    # 2³⁶/C is no power of two here: the product rounds once in the gradient's own type.
    assert torch.equal(total, grid_steps(row[0] * torch.tensor(GRID / CLIP, dtype=dtype)))
    assert float(result.norms) == pytest.approx(float(row.double().norm()), rel=2**-14)
    assert int(result.excluded) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [CLIP * AIM * 1.001, CLIP, 3.0, 1e6, 1e18])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_larger_gradient_keeps_its_direction_and_comes_to_just_under_the_clip_norm(width, norm, dtype):
    row = of_norm(norm, width, dtype)
    total, _ = added(row)
    expected = row[0].double() * (GRID * AIM / row.double().norm())
    assert float((total - expected).norm()) < 2**-13 * GRID
    assert LIMIT * (1 - 2**-10) < squared_steps(total) <= LIMIT


@pytest.mark.parametrize("clip_norm", [MIN_CLIP_NORM, 2.0**-10, 0.1, 1.0, 17.3, MAX_CLIP_NORM])
@pytest.mark.parametrize("scale", [1 - 2**-12, 1 - 2**-20, 1.0, 1 + 2**-20, 2.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_adds_more_than_the_clip_norm_at_any_clip_norm(clip_norm, scale, dtype):
    for width in (1, 2, 1000, 20_000):
        each = clip_norm * scale / math.sqrt(width)
        flat = torch.full((1, width), each, dtype=dtype)  # all roundings go one way
        total, _ = added(flat, clip_norm)
        assert squared_steps(total) <= LIMIT


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hostile=st.lists(
        st.sampled_from(HOSTILE) | st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4
    ),
    clip_norm=st.sampled_from([1.0, 0.01, 3.7, 1e10]),
    offset=st.integers(0, 3),
)
def test_p1_one_hostile_vector_in_float64_moves_the_sum_by_at_most_c(hostile, clip_norm, offset):
    generator = torch.Generator().manual_seed(4)
    others = torch.randn(3, 4, dtype=torch.float64, generator=generator) * clip_norm
    row = torch.tensor([hostile], dtype=torch.float64)
    together = torch.cat([others[:offset], row, others[offset:]])
    moved = added(together, clip_norm)[0] - added(others, clip_norm)[0]
    assert squared_steps(moved) <= LIMIT


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_adds_nothing(width):
    total, result = added(torch.zeros(2, width))
    assert not total.any()
    assert result.norms.tolist() == [0.0, 0.0]
    assert int(result.excluded) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, NORM_CHUNK - 1, NORM_CHUNK, -1])
def test_a_gradient_with_one_value_that_is_not_finite_adds_nothing_and_is_counted(value, place):
    rows = torch.randn(3, 2 * NORM_CHUNK + 3)
    expected = added(rows, present=torch.tensor([True, False, True]))[0]
    rows[1] = 3e38
    rows[1, place] = value
    total, result = added(rows)
    assert torch.equal(total, expected)
    assert int(result.excluded) == 1
    assert not result.norms[1].isfinite()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", [2e19, 3e38])
def test_squares_that_overflow_fp32_are_clipped_like_any_others(value, width):
    row = torch.full((1, width), value)
    total, result = added(row)
    assert float(result.norms) == pytest.approx(value * math.sqrt(width), rel=1e-6)
    assert int(result.excluded) == 0
    assert LIMIT * (1 - 2**-10) < squared_steps(total) <= LIMIT


def test_squares_that_overflow_fp64_are_left_out_and_counted():
    rows = torch.tensor([[1e200, 1.0], [0.1, 0.2]], dtype=torch.float64)
    total, result = added(rows)
    assert torch.equal(total, added(rows[1:])[0])
    assert int(result.excluded) == 1


@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_never_add_more_than_they_are(flushed):
    row = torch.full((1, 1000), 1e-41)
    if flushed and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        total, result = added(row, clip_norm=MIN_CLIP_NORM)
    finally:
        torch.set_flush_denormal(False)
    assert not total.any()
    assert float(result.norms) <= 1e-41 * math.sqrt(1000)


@pytest.mark.parametrize("holds", [0.1, 1e30, math.inf, math.nan])
def test_a_unit_that_is_not_present_adds_nothing_whatever_its_row_holds(holds):
    rows = torch.randn(3, 50)
    rows[1] = holds
    total, result = added(rows, present=torch.tensor([True, False, True]))
    assert torch.equal(total, added(rows[[0, 2]])[0])
    assert int(result.excluded) == 0


def test_what_a_unit_adds_depends_on_its_own_gradient_alone():
    rows = torch.randn(7, 3000) * torch.logspace(-4, 4, 7)[:, None]
    total, _ = added(rows)
    alone = [added(row[None])[0] for row in rows]
    assert torch.equal(total, torch.stack(alone).sum(0))
    assert torch.equal(total, added(rows.flip(0))[0])


def test_a_full_microbatch_of_largest_integers_is_summed_exactly():
    units = 4097
    rows = torch.full((units, 3), 1.0)
    rows[:, 1:] = 0
    one = int(added(rows[:1])[0][0])
    assert one > 2**36 * (1 - 2**-11)
    assert added(rows)[0].tolist() == [units * one, 0, 0]


def test_more_units_than_can_be_summed_exactly_are_refused():
    rows = torch.zeros(1, 1).expand(MAX_UNITS + 1, 1).clone()
    with pytest.raises(ValueError, match=f"at most {MAX_UNITS}"):
        added(rows)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, MIN_CLIP_NORM / 2, MAX_CLIP_NORM * 2])
def test_a_clip_norm_out_of_range_is_refused_before_anything_is_added(clip_norm):
    total = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="clip_norm"):
        add_clipped_rows(torch.ones(2, 4), total, clip_norm, torch.ones(2, dtype=torch.bool))
    assert not total.any()
