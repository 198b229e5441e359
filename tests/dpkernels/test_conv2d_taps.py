"""Rows of three taps per program: the edges of images, of units and of tiles, and which layers take this kernel."""

import pytest
import torch
from torch import Tensor

from dpkernels import conv2d_triton, device
from dpkernels.conv2d_taps_triton import suits_rows_of_taps
from dpkernels.conv2d_tiles import layer_shape
from dpkernels.conv2d_triton import Geometry, conv2d_grads, conv2d_parts
from dpkernels.examples.conv2d import truth

UNITS, DRAWS, WEIGHT, SAME = 2, 2, (8, 32, 3, 3), Geometry(padding=(1, 1))
TILE = device.Tile(4, 16, 64, num_warps=1, num_stages=1)  # two tiles each way, a last step that is not full


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch, interpreter: None) -> None:
    monkeypatch.setattr(device, "INTERPRETED_TILE", TILE)


def operands(height: int, width: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    x, g = (torch.randn(UNITS * DRAWS, channels, height, width).to(dtype) for channels in (32, 8))
    return x.contiguous(memory_format=torch.channels_last), g.contiguous(memory_format=torch.channels_last)


def gradients(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, bias, parts of the squared norms)."""
    weight, bias = torch.full((UNITS, *WEIGHT), torch.nan), torch.full((UNITS, 8), torch.nan)
    parts = torch.full((UNITS, conv2d_parts(WEIGHT, True, x.dtype)), torch.nan, dtype=torch.float64)
    conv2d_grads(x, g, weight, bias, SAME, squares=parts)
    return weight, bias, parts


def taken(x: Tensor, g: Tensor, geometry: Geometry = SAME, weight: tuple[int, ...] = WEIGHT) -> bool:
    return suits_rows_of_taps(x, g, layer_shape(x, g, weight, True, geometry), TILE)


@pytest.mark.parametrize("size", [(7, 5), (2, 9), (3, 2)])
def test_a_row_of_taps_is_the_gradient_and_its_parts_are_the_norm(
    size: tuple[int, int], small_tiles: None
) -> None:
    x, g = operands(*size)
    assert taken(x, g)
    weight, bias, parts = gradients(x, g)
    exact = truth(x, g, WEIGHT, SAME, UNITS)
    torch.testing.assert_close(weight.double(), exact["weight"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.double(), exact["bias"], rtol=1e-5, atol=1e-5)
    stored = weight.double().flatten(1).square().sum(1) + bias.double().square().sum(1)
    torch.testing.assert_close(parts.sum(1), stored, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_unit_that_is_not_finite_does_not_touch_its_neighbour(
    bad: float, which: int, small_tiles: None
) -> None:
    """Its neighbour lies right before or after it in memory, where a step or a tap may reach."""
    x, g = operands(7, 5)
    assert taken(x, g)
    clean = gradients(x, g)
    x[which * DRAWS : (which + 1) * DRAWS] = bad
    for before, after in zip(clean, gradients(x, g), strict=True):
        assert torch.equal(before[1 - which], after[1 - which])


def test_the_general_kernel_gives_the_same_gradients_and_as_many_parts(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, g = operands(6, 5)
    assert taken(x, g)
    rows = gradients(x, g)
    monkeypatch.setattr(conv2d_triton, "suits_rows_of_taps", lambda *layer: False)
    for mine, general in zip(rows, gradients(x, g), strict=True):
        torch.testing.assert_close(mine, general, rtol=1e-5, atol=1e-5)


def test_only_layers_that_it_covers_are_sent_there() -> None:
    x, g = operands(7, 5)
    assert not taken(x.contiguous(), g)
    assert not taken(x, g.contiguous())
    assert not taken(x.float(), g.float())
    assert not taken(x, g[:, :, :5, :3], Geometry())  # no padding
    assert not taken(x, g[:, :, :4, :3], Geometry(stride=(2, 2), padding=(1, 1)))
    assert not taken(x, g, Geometry(padding=(2, 2), dilation=(2, 2)))
    assert not taken(x[:, :20], g, SAME, (8, 20, 3, 3))  # no whole tile, and a view
    assert not taken(x, g, Geometry(), (8, 32, 1, 1))
