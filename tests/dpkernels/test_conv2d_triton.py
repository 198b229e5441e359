"""Chunks of draws, bf16 storage, units that count for nothing, and that store and recompute agree."""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels import conv2d_tiles, device
from dpkernels.clip_sum_triton import add_scaled_rows, squared_row_norms
from dpkernels.conv2d_tiles import to_tf32
from dpkernels.conv2d_triton import Geometry, add_clipped_conv2d, conv2d_grads, conv2d_parts, conv2d_squares
from dpkernels.linear_triton import add_clipped_linear, linear_squares

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

UNITS, DRAWS, SHAPE, GEOMETRY = 3, 4, (6, 5, 3, 3), Geometry(padding=(1, 1))
SIZE = 6 * 5 * 9


@pytest.fixture(autouse=True)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles: several steps, rows and columns, so that their edges are met."""
    monkeypatch.setattr(device, "INTERPRETED_TILE", device.Tile(4, 32, 64, num_warps=1, num_stages=1))
    if not request.node.get_closest_marker("gpu"):
        request.getfixturevalue("interpreter")


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    x, g = torch.randn(UNITS * DRAWS, 5, 7, 6), torch.randn(UNITS * DRAWS, 6, 7, 6)
    return x.to(dtype), g.to(dtype)


def buffer(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(G, its weight view, its bias view)."""
    grads = torch.zeros(UNITS, SIZE + 6, dtype=dtype)
    return grads, grads[:, :SIZE].unflatten(1, SHAPE), grads[:, SIZE:]


def parts() -> Tensor:
    return torch.zeros(UNITS, conv2d_parts(SHAPE, True, torch.float32), dtype=torch.float64)


def test_chunks_of_draws_accumulate_to_the_whole_and_the_last_chunk_leaves_the_norm_of_the_whole() -> None:
    x, g = operands()
    whole, weight, bias = buffer()
    conv2d_grads(x, g, weight, bias, GEOMETRY)
    chunked, weight, bias = buffer()
    squares = parts()
    by_draw = [t.unflatten(0, (UNITS, DRAWS)) for t in (x, g)]
    for first in (0, 2):
        chunk = [t[:, first : first + 2].flatten(0, 1) for t in by_draw]
        conv2d_grads(*chunk, weight, bias, GEOMETRY, accumulate=first > 0, squares=squares)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares.sum(1), chunked.double().square().sum(1), rtol=1e-12, atol=0.0)


def test_the_norm_of_bf16_storage_is_that_of_the_stored_values() -> None:
    x, g = operands(torch.bfloat16)
    grads, weight, bias = buffer(torch.bfloat16)
    squares = parts()
    conv2d_grads(x, g, weight, bias, GEOMETRY, squares=squares)
    torch.testing.assert_close(squares.sum(1), grads.double().square().sum(1), rtol=1e-12, atol=0.0)


def test_store_and_recompute_give_the_same_integers_and_the_same_norms() -> None:
    x, g = operands()
    grads, weight, bias = buffer()
    stored, only = parts(), parts()
    conv2d_grads(x, g, weight, bias, GEOMETRY, squares=stored)
    conv2d_squares(x, g, SHAPE, True, GEOMETRY, only)
    assert torch.equal(stored, only)
    scale = torch.tensor([2.0**28, 3.0e8, 1.7e7])
    sums = [torch.ones(SIZE + 6, dtype=torch.int64) for _ in range(2)]
    add_scaled_rows(grads, scale, sums[0])
    add_clipped_conv2d(x, g, scale, sums[1][:SIZE].view(SHAPE), sums[1][SIZE:], GEOMETRY)
    assert torch.equal(sums[0], sums[1])
    assert sums[0].abs().max() > 2**28


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3e38])
def test_a_unit_of_scale_zero_counts_for_nothing_whatever_it_holds(bad: float) -> None:
    x, g = operands()
    x[DRAWS : 2 * DRAWS] = bad
    scale = torch.tensor([2.0**28, 0.0, 2.0**28])
    clean = torch.zeros(SIZE + 6, dtype=torch.int64)
    kept = [t.unflatten(0, (UNITS, DRAWS))[[0, 2]].flatten(0, 1) for t in (x, g)]
    add_clipped_conv2d(*kept, scale[[0, 2]], clean[:SIZE].view(SHAPE), clean[SIZE:], GEOMETRY)
    recomputed = torch.zeros_like(clean)
    add_clipped_conv2d(x, g, scale, recomputed[:SIZE].view(SHAPE), recomputed[SIZE:], GEOMETRY)
    assert torch.equal(recomputed, clean)
    grads, weight, bias = buffer()
    conv2d_grads(x, g, weight, bias, GEOMETRY)
    stored = torch.zeros_like(clean)
    add_scaled_rows(grads, scale, stored)
    assert torch.equal(stored, clean)


def test_a_unit_that_is_not_finite_shows_in_its_own_norm_only() -> None:
    x, g = operands()
    x[0, 0, 3, 3] = torch.inf
    grads, weight, bias = buffer()
    squares = parts()
    conv2d_grads(x, g, weight, bias, GEOMETRY, squares=squares)
    assert torch.isfinite(squares.sum(1)).tolist() == [False, True, True]
    assert torch.isfinite(squared_row_norms(grads)).tolist() == [False, True, True]


def test_a_weight_without_bias_takes_no_bias() -> None:
    x, g = operands()
    grads, weight, _ = buffer()
    conv2d_grads(x, g, weight, None, GEOMETRY)
    assert grads[:, :SIZE].any()
    assert not grads[:, SIZE:].any()


def summed_over_squared(x: Tensor, g: Tensor, weight: tuple[int, ...], geometry: Geometry) -> float:
    """The relative difference between one unit's squared norm and that of what is summed of it."""
    squares = torch.zeros(
        1, conv2d_parts(weight, True, x.dtype, recompute=True), dtype=torch.float64, device=x.device
    )
    conv2d_squares(x, g, weight, True, geometry, squares)
    # A power of two, so that scaling is exact; as large as the grid allows, so that rounding is far below fp32's.
    power = 46 - math.ceil(math.log2(squares.sum().sqrt()))
    total = torch.zeros(math.prod(weight) + weight[0], dtype=torch.int64, device=x.device)
    scale = torch.full((1,), 2.0**power, device=x.device)
    add_clipped_conv2d(x, g, scale, total[: -weight[0]].view(weight), total[-weight[0] :], geometry)
    summed = total.double().square().sum() * 4.0**-power
    return float((summed / squares.sum() - 1).abs())


def cancelling(dtype: torch.dtype, where: str, shape: tuple[int, ...], cout: int) -> tuple[Tensor, Tensor]:
    """One unit of two draws whose gradients cancel to the rounding of fp32."""
    torch.manual_seed(6)
    x, g = torch.randn(1, *shape, device=where), torch.randn(1, cout, *shape[1:], device=where)
    return torch.cat((x, x * 3)).to(dtype), torch.cat((g, g / -3)).to(dtype)


def test_what_is_summed_of_a_unit_is_what_was_squared_even_where_its_terms_cancel() -> None:
    x, g = cancelling(torch.float32, "cpu", (5, 7, 6), 6)
    assert summed_over_squared(x, g, SHAPE, GEOMETRY) < 1e-9


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [32, 64, 256])
def test_what_is_summed_of_a_unit_is_what_was_squared_on_a_gpu(channels: int, dtype: torch.dtype) -> None:
    x, g = cancelling(dtype, "cuda", (channels, 14, 14), channels)
    for layout in (torch.contiguous_format, torch.channels_last):
        operands = [t.contiguous(memory_format=layout) for t in (x, g)]
        assert summed_over_squared(*operands, (channels, channels, 3, 3), Geometry(padding=(1, 1))) < 1e-9


def test_a_norm_from_factors_bounds_what_is_summed_where_rows_cancel() -> None:
    """Exactly, the product is nearly nothing; in fp32 its rounding is what is left, and is summed."""
    for seed in range(20):
        torch.manual_seed(seed)
        x, g = torch.randn(1, 9) * 1e3, torch.randn(1, 7) * 1e3
        x, g = torch.cat((x, x * 3)), torch.cat((g, g / -3))
        bound = linear_squares(x, g, 1, True).sqrt()
        weight, bias = torch.zeros(7, 9, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)
        add_clipped_linear(x, g, (2.0**36 / bound).float(), weight, bias)
        summed = torch.cat((weight.flatten(), bias)).double().norm()
        assert summed <= 2.0**36 * (1 + 2.0**-13)


def test_a_norm_from_factors_is_infinite_where_a_sum_in_fp32_may_be() -> None:
    """float64 holds the product, fp32 does not: as a finite unit it would be summed as infinity."""
    x, g = torch.full((4, 3), 1e20), torch.full((4, 2), 1e-20)
    g[2:] = 2e25  # the second unit's
    assert linear_squares(x, g, 2, False).isfinite().tolist() == [True, False]
    assert linear_squares(g, x, 2, True).isfinite().tolist() == [True, False]


def test_a_unit_too_large_for_the_kernels_offsets_is_refused() -> None:
    """They would wrap and read what lies elsewhere. Meta tensors have no memory: nothing of that size is made."""
    x, g = (torch.empty(32, 64, 1024, 1024, device="meta") for _ in range(2))
    squares = torch.empty(1, 1, dtype=torch.float64, device="meta")
    with pytest.raises(ValueError, match="32 x 67108864 elements"):
        conv2d_squares(x, g, (64, 64, 3, 3), True, GEOMETRY, squares)


@triton.jit
def _round_kernel(value: tl.tensor, count: tl.constexpr) -> None:
    place = value + tl.arange(0, count)
    tl.store(place, to_tf32(tl.load(place)))


def test_rounding_to_tf32_leaves_what_is_not_finite() -> None:
    step = 2.0**-10
    kept = [0.0, -0.0, 1.0, 1 + step, torch.inf, -torch.inf, 2.0**-126]
    ties = {1 + step / 2: 1 + step, -1 - step / 2: -1 - step, 1 + step * 0.499: 1.0, 3.4028e38: torch.inf}
    value = torch.tensor([*kept, *ties, torch.nan, -torch.nan, *[0.0] * 3])
    value.view(torch.int32)[-3:] = torch.tensor([0x7FFFFFFF, -1, 0x7F800001])  # NaN of other bits
    _round_kernel[(1,)](value, 16)
    assert value[:11].tolist() == [*kept, *ties.values()]
    assert value[11:].isnan().all()


def test_operands_of_tf32_products_are_rounded_where_the_hardware_would_cut_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conv2d_tiles, "precision_of", lambda dtype: "tf32")
    between = torch.tensor([1 + 0.75 * 2.0**-10, 1 + 0.25 * 2.0**-10]).view(2, 1, 1, 1)
    for x, g in ((between, torch.ones(2, 1, 1, 1)), (torch.ones(2, 1, 1, 1), between)):
        weight = torch.zeros(2, 1, 1, 1, 1)
        conv2d_grads(x, g, weight, None)
        assert weight.flatten().tolist() == [1 + 2.0**-10, 1.0]
