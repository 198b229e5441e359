"""Each layer's gradient by unit equals autograd's, taken one unit at a time."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.conv2d import conv2d_bias_grad, conv2d_weight_grad
from dpkernels.embedding import embedding_weight_grad
from dpkernels.group_norm import group_norm_backward
from dpkernels.linear import linear_bias_grad, linear_weight_grad

UNITS = 5
ULP = torch.finfo(torch.float32).eps
DRAWS = pytest.mark.parametrize("draws", [1, 3])
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a slice of channels": lambda x: torch.stack((x, x + 1), 2).flatten(1, 2)[:, ::2],
    "a slice of columns": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "reversed order of dimensions": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}
LAYOUTS_2D: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
}


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm())


def by_unit(forward: Callable[..., Tensor], weights: list[Tensor], x: Tensor, grad: Tensor) -> list[Tensor]:
    """Autograd's gradients of `weights`, one unit at a time: [units, *shape] each."""
    rows = []
    # Contiguous: torch's own backward of an fp64 group norm crashes on channels_last (2.13, CPU).
    for x_unit, grad_unit in zip(x.contiguous().chunk(UNITS), grad.contiguous().chunk(UNITS), strict=True):
        leaves = [w.detach().clone().requires_grad_() for w in weights]
        rows.append(torch.autograd.grad(forward(x_unit, *leaves), leaves, grad_unit))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def segment(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A strided view of a wider buffer, full of NaN: what is not written shows."""
    return torch.full((UNITS, shape.numel() + 7), torch.nan, dtype=dtype)[:, 3:-4].unflatten(1, shape)


def check(
    forward: Callable[..., Tensor],
    weights: list[Tensor],
    x: Tensor,
    grad: Tensor,
    ours: Callable[[Tensor, Tensor, list[Tensor], bool], None],
) -> None:
    """fp64 to 1e-12; fp32 with at most twice autograd's own error; accumulation adds. x may be an index."""
    truth = by_unit(forward, weights, x, grad)
    outs = [segment(w.shape, torch.float64) for w in weights]
    ours(x, grad, outs, False)
    for out, expected in zip(outs, truth, strict=True):
        assert relative(out, expected) < 1e-12
    ours(x, grad, outs, True)
    for out, expected in zip(outs, truth, strict=True):
        assert relative(out, 2 * expected) < 1e-12
    x32, grad32 = (relaid(t.float(), t) if t.is_floating_point() else t for t in (x, grad))
    weights32 = [w.float() for w in weights]
    exact = by_unit(forward, [w.double() for w in weights32], widened(x32), widened(grad32))
    plain = by_unit(forward, weights32, x32, grad32)
    outs = [segment(w.shape, torch.float32) for w in weights]
    ours(x32, grad32, outs, False)
    for out, autograd, expected in zip(outs, plain, exact, strict=True):
        assert relative(out, expected) <= max(2 * relative(autograd, expected), 4 * ULP)


def widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def relaid(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the strides of `like`: a cast makes a tensor dense, and layouts are what is tested."""
    reach = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))
    return torch.empty(reach, dtype=values.dtype).as_strided(like.shape, like.stride()).copy_(values)


CONVOLUTIONS = {
    "3x3": {"weight": (6, 4, 3, 3), "padding": (1, 1)},
    "1x1": {"weight": (6, 4, 1, 1)},
    "1x1 with stride": {"weight": (6, 4, 1, 1), "stride": (2, 2)},
    "3x3 with stride 2": {"weight": (6, 4, 3, 3), "stride": (2, 2), "padding": (1, 1)},
    "no padding": {"weight": (3, 4, 3, 3), "stride": (2, 1)},
    "5x3, uneven": {"weight": (2, 4, 5, 3), "stride": (1, 3), "padding": (2, 0), "dilation": (1, 2)},
    "dilated": {"weight": (6, 4, 3, 3), "padding": (2, 2), "dilation": (2, 2)},
    "two groups": {"weight": (6, 2, 3, 3), "padding": (1, 1), "groups": 2},
    "depthwise": {"weight": (8, 1, 3, 3), "padding": (1, 1), "groups": 4},
    "wide": {"weight": (17, 33, 3, 3), "padding": (1, 1)},
    "one channel": {"weight": (16, 1, 3, 3), "padding": (1, 1)},
    "one channel, uneven": {"weight": (4, 1, 3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "one channel out": {"weight": (1, 16, 3, 3), "padding": (1, 1)},
    "one channel out, uneven": {"weight": (1, 5, 2, 5), "padding": (0, 4)},
    "one channel out, padded beyond its taps": {"weight": (1, 5, 3, 3), "padding": (3, 1)},
    "one channel out with stride": {"weight": (1, 5, 3, 3), "padding": (1, 1), "stride": (2, 1)},
    "1x1 with padding": {"weight": (6, 4, 1, 1), "padding": (1, 0)},
    "few positions": {"weight": (6, 4, 3, 3), "stride": (4, 4), "padding": (1, 2)},
    "one position": {"weight": (6, 4, 9, 8)},
}


@DRAWS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, layout: str, draws: int) -> None:
    geometry = dict(CONVOLUTIONS[case])
    shape = geometry.pop("weight")
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64)
    samples = UNITS * draws
    x = LAYOUTS[layout](torch.randn(samples, shape[1] * geometry.get("groups", 1), 9, 8, dtype=torch.float64))

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, **geometry)

    grad = LAYOUTS[layout](torch.randn(forward(x, weight, bias).shape, dtype=torch.float64))

    def ours(x: Tensor, grad: Tensor, outs: list[Tensor], accumulate: bool) -> None:
        conv2d_weight_grad(x, grad, outs[0], **geometry, accumulate=accumulate)
        conv2d_bias_grad(grad, outs[1], accumulate)

    check(forward, [weight, bias], x, grad, ours)


@DRAWS
@pytest.mark.parametrize("positions", [(), (1,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_linear(positions: tuple[int, ...], transposed: bool, draws: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    x = torch.randn(UNITS * draws, *positions, 4, dtype=torch.float64)
    grad = torch.randn(UNITS * draws, *positions, 6, dtype=torch.float64)
    if transposed:
        x, grad = (t.transpose(0, -1).contiguous().transpose(0, -1) for t in (x, grad))

    def ours(x: Tensor, grad: Tensor, outs: list[Tensor], accumulate: bool) -> None:
        linear_weight_grad(x, grad, outs[0], accumulate)
        linear_bias_grad(grad, outs[1], accumulate)

    check(F.linear, [weight, bias], x, grad, ours)


@DRAWS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("size", [(), (5,), (5, 4)], ids=str)
def test_group_norm(size: tuple[int, ...], layout: str, draws: int) -> None:
    relayout = LAYOUTS[layout] if len(size) == 2 else LAYOUTS_2D[layout]
    torch.manual_seed(0)
    weight, bias = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    shape = (UNITS * draws, 6, *size)
    x = relayout(torch.randn(shape, dtype=torch.float64) + 0.5)
    grad = relayout(torch.randn(shape, dtype=torch.float64))

    def ours(x: Tensor, grad: Tensor, outs: list[Tensor], accumulate: bool) -> None:
        flat = x.contiguous()
        _, mean, rstd = torch.native_group_norm(
            flat, weight.to(x.dtype), bias.to(x.dtype), len(x), 6, x[0, 0].numel(), 2, 1e-5
        )
        grad_x, *affine = group_norm_backward(x, grad, mean, rstd, weight.to(x.dtype), UNITS)
        for out, value in zip(outs, affine, strict=True):
            out.copy_(out + value if accumulate else value)
        leaf = x.double().clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.group_norm(leaf, 2, weight), leaf, grad.double())
        assert relative(grad_x, expected) < (1e-12 if x.dtype == torch.float64 else 1e-5)

    check(lambda x, weight, bias: F.group_norm(x, 2, weight, bias), [weight, bias], x, grad, ours)


@DRAWS
@pytest.mark.parametrize("positions", [(), (3,)], ids=str)
@pytest.mark.parametrize("padding_row", [None, 4])
def test_embedding_with_repeated_rows_and_a_null_class(
    padding_row: int | None, positions: tuple[int, ...], draws: int
) -> None:
    torch.manual_seed(0)
    table = torch.randn(7, 6, dtype=torch.float64)
    index = torch.randint(0, 3, (UNITS * draws, *positions))
    index[::2] = 6  # the null class of label dropout
    index[-1] = 4
    grad = torch.randn(*index.shape, 6, dtype=torch.float64)

    def ours(index: Tensor, grad: Tensor, outs: list[Tensor], accumulate: bool) -> None:
        embedding_weight_grad(index, grad, outs[0], padding_row, accumulate)

    check(lambda index, table: F.embedding(index, table, padding_row), [table], index, grad, ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(10, 8, 12, 12).to(dtype), torch.randn(10, 8, 12, 12).to(dtype)
    out, bias = segment(torch.Size((8, 8, 3, 3)), torch.float32), segment(torch.Size((8,)), torch.float32)
    conv2d_weight_grad(x, grad, out, padding=(1, 1))
    conv2d_bias_grad(grad, bias)
    weights = [torch.zeros(8, 8, 3, 3, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)]

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    truth = by_unit(forward, weights, x.double(), grad.double())
    assert relative(out, truth[0]) < 1e-5
    assert relative(bias, truth[1]) < 1e-5
    rows, tops = x.flatten(2).transpose(1, 2), grad.flatten(2).transpose(1, 2)
    out = segment(torch.Size((8, 8)), torch.float32)
    linear_weight_grad(rows, tops, out)
    truth = by_unit(F.linear, [torch.zeros(8, 8, dtype=torch.float64)], rows.double(), tops.double())
    assert relative(out, truth[0]) < 1e-5


HOSTILE = pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
OTHERS = [0, 1, 3, 4]


@DRAWS
@HOSTILE
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 40])
@pytest.mark.parametrize(("channels", "outs"), [(1, 6), (6, 1), (5, 5), (16, 16), (24, 24)])
def test_a_hostile_neighbour_changes_no_bit_of_a_units_convolution_gradient(
    channels: int, outs: int, size: int, taps: int, value: float, draws: int
) -> None:
    # Units share calls: the vector tails of one must not let its values into another's.
    torch.manual_seed(0)
    x, grad = torch.randn(UNITS * draws, channels, size, size), torch.randn(UNITS * draws, outs, size, size)
    found = []
    for hostile in (False, True):
        if hostile:
            x[2 * draws : 3 * draws], grad[2 * draws : 3 * draws] = value, value
        found.append(torch.zeros(UNITS, outs, channels, taps, taps))
        conv2d_weight_grad(x, grad, found[-1], padding=(taps // 2, taps // 2))
    assert torch.equal(found[0][OTHERS], found[1][OTHERS])
    assert not torch.equal(found[0][2], found[1][2])


@DRAWS
@HOSTILE
@pytest.mark.parametrize("positions", [(), (7,)], ids=str)
def test_a_hostile_neighbour_changes_no_bit_of_a_units_linear_gradient(
    positions: tuple[int, ...], value: float, draws: int
) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(UNITS * draws, *positions, 5), torch.randn(UNITS * draws, *positions, 7)
    found = []
    for hostile in (False, True):
        if hostile:
            x[2 * draws : 3 * draws], grad[2 * draws : 3 * draws] = value, value
        found.append((torch.zeros(UNITS, 7, 5), torch.zeros(UNITS, 7)))
        linear_weight_grad(x, grad, found[-1][0])
        linear_bias_grad(grad, found[-1][1])
    for before, after in zip(*found, strict=True):
        assert torch.equal(before[OTHERS], after[OTHERS])
        assert not torch.equal(before[2], after[2])


@DRAWS
@HOSTILE
def test_a_hostile_neighbour_changes_no_bit_of_a_units_norm_gradient(value: float, draws: int) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(UNITS * draws, 6, 5, 3), torch.randn(UNITS * draws, 6, 5, 3)
    weight, found = torch.randn(6), []
    for hostile in (False, True):
        if hostile:
            x[2 * draws : 3 * draws], grad[2 * draws : 3 * draws] = value, value
        _, mean, rstd = torch.native_group_norm(x, weight, None, len(x), 6, 15, 2, 1e-5)
        grad_x, scale, shift = group_norm_backward(x, grad, mean, rstd, weight, UNITS)
        found.append((grad_x.unflatten(0, (UNITS, draws)), scale, shift))
    for before, after in zip(*found, strict=True):
        assert torch.equal(before[OTHERS], after[OTHERS])
        assert not torch.equal(before[2], after[2])
