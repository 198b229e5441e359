"""The oracle, layer by layer: gradients by unit through the swapped forward equal batch-of-one autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curriculumdp.clipping.dense_store import DenseStore
from curriculumdp.clipping.parameters import Parameters
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.clipping.rules import UnruledLayer

UNITS = 3
ULP = torch.finfo(torch.float32).eps
DRAWS = pytest.mark.parametrize("draws", [1, 3])
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "view": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "transposed view": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
CONVOLUTIONS: dict[str, dict[str, object]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "down-sampling": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride without padding": {"kernel_size": 3, "stride": (2, 1)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "uneven": {"kernel_size": (5, 3), "stride": (1, 3), "padding": (2, 0), "dilation": (1, 2)},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
}


def relaid(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the strides of `like`: a cast makes a tensor dense, and layouts are what is tested."""
    reach = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))
    return torch.empty(reach, dtype=values.dtype).as_strided(like.shape, like.stride()).copy_(values)


def by_autograd(layer: nn.Module, x: Tensor, weight: Tensor, draws: int) -> list[Tensor]:
    """Autograd's gradients, one unit at a time, of every parameter [units, *shape], and of x if it is real."""
    rows = []
    for x_unit, weight_unit in zip(x.split(draws), weight.split(draws), strict=True):
        leaf = x_unit.contiguous()
        leaves = [*layer.parameters(), *([leaf.requires_grad_()] if leaf.is_floating_point() else [])]
        loss = (layer(leaf) * weight_unit).sum() / draws
        rows.append(torch.autograd.grad(loss, leaves))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def by_engine(layer: nn.Module, x: Tensor, weight: Tensor, draws: int) -> list[Tensor]:
    """The same of the engine; what comes before the layer has x's layout, and so has the gradient after it."""
    engine = PerUnitGradients(
        layer, UNITS, draws, DenseStore(Parameters(layer), UNITS, next(layer.parameters()).dtype)
    )
    leaf = x.detach()
    if leaf.is_floating_point():
        leaf.requires_grad_()

    def losses() -> Tensor:
        return (layer(leaf) * weight).flatten(1).sum(1).view(UNITS, draws).mean(1)

    engine.backward(losses)
    parts = engine.grads.split([segment.shape.numel() for segment in engine.parameters], 1)
    grads = [part.unflatten(1, s.shape) for part, s in zip(parts, engine.parameters, strict=True)]
    return grads if leaf.grad is None else [*grads, leaf.grad.unflatten(0, (UNITS, draws))]


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm())


def check(layer: nn.Module, x: Tensor, relayout: Callable[[Tensor], Tensor], draws: int) -> None:
    """fp64 to 1e-12; fp32 with at most twice autograd's own error. `layer` is fp32, x fp32 or an index."""
    layer.double()
    x = relayout(x.double()) if x.is_floating_point() else x
    weight = torch.randn(layer(x).shape, dtype=torch.float64)
    weight = relayout(weight) if weight.dim() == x.dim() else weight
    truth = by_autograd(layer, x, weight, draws)
    for ours, expected in zip(by_engine(layer, x, weight, draws), truth, strict=True):
        assert relative(ours, expected) < 1e-12
    x32 = relaid(x.float(), x) if x.is_floating_point() else x
    weight32 = relaid(weight.float(), weight)
    layer.float()
    plain = by_autograd(layer, x32, weight32, draws)
    ours32 = by_engine(layer, x32, weight32, draws)
    layer.double()
    wide = x32.double() if x32.is_floating_point() else x32
    exact = by_autograd(layer, wide, weight32.double(), draws)
    for ours, autograd, expected in zip(ours32, plain, exact, strict=True):
        assert relative(ours, expected) <= max(2 * relative(autograd, expected), 4 * ULP)


@DRAWS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, layout: str, draws: int) -> None:
    layer = nn.Conv2d(4, 6, **CONVOLUTIONS[case])
    check(layer, torch.randn(UNITS * draws, 4, 9, 8), LAYOUTS[layout], draws)


@DRAWS
@pytest.mark.parametrize("positions", [(), (1,), (6,), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool, positions: tuple[int, ...], draws: int) -> None:
    for relayout in (Tensor.contiguous, lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)):
        check(nn.Linear(5, 7, bias), torch.randn(UNITS * draws, *positions, 5), relayout, draws)


@DRAWS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_norm_of_images(layout: str, draws: int) -> None:
    layer = nn.GroupNorm(2, 6)
    nn.init.normal_(layer.weight)
    check(layer, torch.randn(UNITS * draws, 6, 5, 4), LAYOUTS[layout], draws)


@DRAWS
@pytest.mark.parametrize("size", [(), (9,)], ids=str)
def test_group_norm_of_vectors_and_sequences(size: tuple[int, ...], draws: int) -> None:
    layer = nn.GroupNorm(2, 6)
    nn.init.normal_(layer.weight)
    for relayout in (Tensor.contiguous, lambda t: t.transpose(1, -1).contiguous().transpose(1, -1)):
        check(layer, torch.randn(UNITS * draws, 6, *size), relayout, draws)


@DRAWS
@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("positions", [(), (4,)], ids=str)
def test_embedding(positions: tuple[int, ...], padding_idx: int | None, draws: int) -> None:
    layer = nn.Embedding(5, 3, padding_idx)
    index = torch.randint(0, 5, (UNITS * draws, *positions))
    check(layer, index, Tensor.contiguous, draws)


@DRAWS
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Linear(8, 6)], ids=["conv2d", "linear"])
def test_under_bf16_autocast_only_the_inputs_are_rounded_not_the_sums(layer: nn.Module, draws: int) -> None:
    layer.float()
    x = torch.randn(UNITS * draws, 4, 12, 8)
    weight = torch.randn(layer(x).shape).bfloat16().float()
    engine = PerUnitGradients(layer, UNITS, draws)

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        return (y.float() * weight).flatten(1).sum(1).view(UNITS, draws).sum(1)

    engine.backward(losses)
    rounded = x.bfloat16().double()
    truth = by_autograd(layer.double(), rounded, weight.double() * draws, draws)
    layer.float()
    for (name, shape, at), expected in zip(engine.parameters, truth[:2], strict=True):
        ours = engine.grads[:, at : at + shape.numel()].unflatten(1, shape)
        assert relative(ours, expected) < 1e-5, name


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "batch norm": (nn.BatchNorm2d(4), "BatchNorm2d.*mixes the units"),
    "batch norm without weights": (nn.BatchNorm2d(4, affine=False), "BatchNorm2d.*mixes the units"),
    "synchronised batch norm": (nn.SyncBatchNorm(4), "mixes the units"),
    "layer norm": (nn.LayerNorm(4), "LayerNorm.*no rule"),
    "transposed convolution": (nn.ConvTranspose2d(4, 4, 3), "ConvTranspose2d.*no rule"),
    "one-dimensional convolution": (nn.Conv1d(4, 4, 3), "Conv1d.*no rule"),
    "bilinear": (nn.Bilinear(4, 4, 4), "Bilinear.*no rule"),
    "recurrent": (nn.GRU(4, 4), "GRU.*weight_ih_l0.*no rule"),
    "attention with weights of its own": (nn.MultiheadAttention(4, 2), "MultiheadAttention.*in_proj_weight"),
    "reflected padding": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding"),
    "padding by word": (nn.Conv2d(4, 4, 3, padding="same"), "padding"),
    "rows rescaled in the forward": (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    "gradients by frequency": (nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
    "sparse gradients": (nn.Embedding(4, 4, sparse=True), "sparse"),
}


class OwnForward(nn.Linear):
    """A subclass may compute anything: its parent's rule is not its own."""


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_whose_gradient_by_unit_is_unknown_is_refused_by_its_name(case: str) -> None:
    layer, reason = REFUSED[case]
    net = nn.Sequential()
    net.add_module("first", nn.Linear(4, 4))
    net.add_module("odd_one", layer)
    with pytest.raises(UnruledLayer, match=f"(?s)odd_one.*{reason}"):
        PerUnitGradients(net, 2, 1)


def test_a_subclass_of_a_layer_with_a_rule_is_refused() -> None:
    with pytest.raises(UnruledLayer, match=r"0 \(OwnForward\).*weight.*no rule"):
        PerUnitGradients(nn.Sequential(OwnForward(4, 4)), 2, 1)


def test_a_parameter_outside_any_layer_is_refused_by_its_name() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net.register_parameter("scale", nn.Parameter(torch.ones(())))
    with pytest.raises(UnruledLayer, match=r"the model.*scale"):
        PerUnitGradients(net, 2, 1)


def test_a_frozen_layer_needs_no_rule() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    assert [s.name for s in PerUnitGradients(net, 2, 1).parameters] == ["1.weight", "1.bias"]
