"""The fused execution is diffusers' own network: its forward, and autograd's gradient of every unit and parameter."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from curriculumdp.clipping.dense_store import DenseStore
from curriculumdp.clipping.fused_unet import FusedUNet
from curriculumdp.clipping.parameters import Parameters
from curriculumdp.clipping.per_unit import GradientError, PerUnitGradients
from curriculumdp.clipping.unet_blocks import Pass
from curriculumdp.clipping.unet_cover import uncovered
from curriculumdp.config.config import load_config
from curriculumdp.diffusion.networks import build_unet
from tests.clipping.conftest import LossOf, denoising_loss, oracle

UNITS = 2
CONFIGS = sorted(Path("configs").glob("*.yaml"))
# size, image channels, channels of the levels, blocks, attention at, options of diffusers that build_unet fixes.
NETS = {
    "one level, 9 px, an odd size": (9, 1, (8,), 2, (9,), {}),
    "two levels, 14 px, several heads": (14, 3, (8, 12), 1, (7,), {"attention_head_dim": 2}),
    "four levels, 64 px, colour": (64, 3, (4, 8, 8, 16), 1, (8,), {}),
    "no attention anywhere": (8, 1, (8, 16), 1, (), {"add_attention": False}),
    "no middle block": (8, 1, (8, 8), 1, (4,), {"mid_block_type": None}),
    "no classes": (8, 2, (8, 8), 1, (8,), {"num_class_embeds": None}),
}


def shipped() -> dict[str, Path]:
    """One config for each network of configs/."""
    found = {}
    for path in CONFIGS:
        config = load_config(path)
        found.setdefault((config.model.model_dump_json(), config.data.size, config.data.channels), path)
    return {path.stem: path for path in found.values()}


def network(case: str) -> UNet2DModel:
    """A network of the table or of a config, with weights that are nowhere at a special point such as zero or one."""
    torch.manual_seed(0)
    if case in NETS:
        size, image_channels, channels, blocks, attention, options = NETS[case]
        net = build_unet(
            channels, size, image_channels, 4, False, blocks=blocks, attention=attention, groups=2
        )
        if options:
            net = UNet2DModel(**{**net.config, **options})
    else:
        config = load_config(shipped()[case])
        model, data = config.model, config.data
        net = build_unet(
            *(model.channels, data.size, data.channels, data.classes, True),
            blocks=model.blocks,
            attention=model.attention,
            groups=model.norm_groups,
        )
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return net


def loss_of(net: nn.Module, samples: int) -> LossOf:
    """The loss of `denoising_loss`, without labels if the network takes none."""
    if net.class_embedding is not None:
        return denoising_loss(net, samples, next(net.parameters()).dtype)
    labelled = denoising_loss(net, samples, next(net.parameters()).dtype)
    return lambda net, which: labelled(lambda x, time, labels: net(x, time), which)


def fused(net: nn.Module, draws: int) -> PerUnitGradients:
    store = DenseStore(Parameters(net), UNITS, next(net.parameters()).dtype)
    return PerUnitGradients(net, UNITS, draws, store, FusedUNet(net))


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grad.flatten(1) for grad in grads.values()], 1)


@pytest.mark.parametrize("case", [*NETS, *shipped()])
def test_in_fp64_forward_and_gradients_are_diffusers_own(case: str) -> None:
    draws = 2 if case in NETS else 1
    net = network(case).double()
    assert uncovered(net) is None
    loss = loss_of(net, UNITS * draws)
    with torch.no_grad():
        expected = loss(net, slice(None)).view(UNITS, draws).mean(1)
    engine = fused(net, draws)
    losses = engine.backward(lambda: loss(net, slice(None)).view(UNITS, draws).mean(1))
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0.0)
    truth = oracle(net, loss, UNITS, draws)
    assert list(truth) == [segment.name for segment in engine.parameters]
    largest = flat(truth).norm()
    for name, shape, at in engine.parameters:
        ours = engine.grads[:, at : at + shape.numel()].unflatten(1, shape)
        if name.endswith("to_k.bias"):  # zero: softmax takes out what all of a query's scores share
            assert ours.norm() < 1e-12 * largest
        else:
            assert (ours - truth[name]).norm() <= 1e-10 * truth[name].norm(), name


@pytest.mark.parametrize("case", [*NETS, *shipped()])
def test_in_fp32_the_error_is_at_most_twice_that_of_plain_autograd(case: str) -> None:
    net = network(case)
    loss = loss_of(net, UNITS)
    engine = fused(net, 1)
    engine.backward(lambda: loss(net, slice(None)))
    ours, plain = engine.grads.double(), flat(oracle(net, loss, UNITS, 1)).double()
    wide = net.double()
    truth = flat(oracle(wide, lambda net, which: loss(_widened(net), which), UNITS, 1))
    error, allowed = (float((grads - truth).norm() / truth.norm()) for grads in (ours, plain))
    assert error <= 2 * allowed
    assert error <= 2e-6


def _widened(net: nn.Module):
    """A call of the fp64 network on fp32 samples."""
    return lambda x, *rest: net(x.double(), *(t.double() if t.is_floating_point() else t for t in rest))


def test_what_no_norm_has_computed_is_computed_before_a_convolution() -> None:
    """Once, in the tensor that stands for it."""
    p = Pass(DenseStore(Parameters(nn.Linear(1, 1)), 1), torch.float64)
    x, y, bias = torch.ones(1, 2, 2, 3), torch.arange(12.0).view(1, 2, 2, 3), torch.tensor([1.0, 2.0, 3.0])
    total = p.later(x, y, bias=bias).fill_(torch.nan)
    assert p.settled(total) is total
    torch.testing.assert_close(total, x + y + bias)
    assert p.pending == {}
    assert p.settled(total.fill_(7)).eq(7).all()
    assert p.later(x, bias=None) is x


UNCOVERED = {
    "down_blocks.0 is a SkipDownBlock2D": {
        "down_block_types": ("SkipDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
    },
    "time_embedding_type is fourier": {"time_embedding_type": "fourier"},
    "class_embed_type is timestep": {"class_embed_type": "timestep"},
    "resnet_time_scale_shift is scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "mid_block_scale_factor is 2": {"mid_block_scale_factor": 2},
    "down_blocks.0.downsamplers.0 (Downsample2D): uneven padding": {"downsample_padding": 0},
    "down_blocks.0.resnets.0.dropout (Dropout): dropout": {"dropout": 0.1},
    "act_fn is gelu": {"act_fn": "gelu"},
    "center_input_sample is True": {"center_input_sample": True},
}


@pytest.mark.parametrize("reason", UNCOVERED)
def test_what_is_not_covered_is_named(reason: str) -> None:
    net = build_unet((8, 16), 8, 1, 4, False, blocks=1, groups=2)
    assert uncovered(UNet2DModel(**{**net.config, **UNCOVERED[reason]})) == reason


def test_a_resampling_resnet_a_frozen_parameter_and_another_network_are_not_covered() -> None:
    net = build_unet((8, 16), 8, 1, 4, False, blocks=1, attention=(8,))
    assert "down_blocks.0.downsamplers.0" in uncovered(
        UNet2DModel(**{**net.config, "downsample_type": "resnet"})
    )
    with torch.device("meta"):
        wide = build_unet((520,), 8, 1, 4, False, blocks=1)
    assert uncovered(wide) == "mid_block.attentions.0 (Attention): its heads have more than 512 channels"
    net.conv_in.weight.requires_grad_(False)
    assert uncovered(net) == "conv_in (Conv2d): a frozen parameter"
    assert uncovered(nn.Linear(2, 2)) == "the network is a Linear"


def test_a_batch_of_another_size_is_refused_and_the_network_is_what_it_was() -> None:
    net = network("no attention anywhere")
    loss = loss_of(net, UNITS + 1)
    engine = fused(net, 1)
    with pytest.raises(GradientError, match="the network saw 3 samples, not units × draws = 2 × 1"):
        engine.backward(lambda: loss(net, slice(None))[:UNITS])
    assert "forward" not in net.__dict__
    with pytest.raises(GradientError, match="complete backward"):
        engine.add_clipped_grads(
            torch.zeros(engine.total, dtype=torch.int64), 1.0, torch.ones(UNITS, dtype=torch.bool)
        )


def test_a_loss_that_does_not_use_the_network_is_refused() -> None:
    net = network("no attention anywhere")
    engine = fused(net, 1)
    with pytest.raises(GradientError, match=r"conv_in\.weight got no gradient"):
        engine.backward(lambda: torch.ones(UNITS, requires_grad=True) * 2)


@pytest.mark.parametrize("hostile", [torch.nan, torch.inf, 1e30])
def test_a_unit_that_is_replaced_changes_no_bit_of_the_others(hostile: float) -> None:
    net, draws, found = network("two levels, 14 px, several heads"), 2, []
    torch.manual_seed(1)
    x, noise = torch.randn(UNITS * draws, 3, 14, 14), torch.randn(UNITS * draws, 3, 14, 14)
    time, labels = torch.randn(UNITS * draws), torch.arange(UNITS * draws)
    for replaced in (False, True):
        if replaced:
            x[draws:] = hostile
        engine = fused(net, draws)
        engine.backward(
            lambda: (net(x, time, labels).sample - noise).square().mean((1, 2, 3)).view(UNITS, draws).mean(1)
        )
        found.append(engine.grads.clone())
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
