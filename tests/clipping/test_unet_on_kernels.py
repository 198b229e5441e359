"""A whole U-Net on the kernels, as training plans and runs it: the reference's norms and sums."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from curriculumdp.clipping.fused_unet import FusedUNet
from curriculumdp.clipping.layer_plan import EnginePlan, LayerPlan, Way
from curriculumdp.clipping.parameters import GradientError
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.clipping.planned_engine import planned_engine
from curriculumdp.clipping.planned_store import PlannedStore
from curriculumdp.config.sections import ComputeConfig
from curriculumdp.curriculum.engine import (
    EXPLAINED_MEMORY,
    build_engine,
    engine_plan,
    repeat_to_the_bit,
    stored_dtype,
    unet_shapes,
)
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from curriculumdp.diffusion.networks import build_unet
from dpkernels import device
from dpkernels.grid import GRID

UNITS, DRAWS, CLIP = 3, 2, 0.4
interpreted = pytest.mark.skipif(
    not device.INTERPRETER, reason="needs TRITON_INTERPRET=1, set before triton is first imported"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# bf16's distance from fp32, in that of torch's own bf16: a GPU rounds as torch does, the interpreter cuts.
BF16 = {"cuda": 1.25, "cpu": 2.0}


def unet(channels: tuple[int, ...], where: str = "cpu", size: int = 8) -> UNet2DModel:
    torch.manual_seed(4)
    net = build_unet(channels, size, 1, 4, False, blocks=1)
    return net.to(where, memory_format=torch.channels_last)


def unit_losses(
    net: UNet2DModel, seed: int, bf16: bool = False, spoiled: float | None = None
) -> Callable[[], Tensor]:
    """The loss of each unit [B], a batch of its own for each seed; spoiled: the second unit's images."""
    where, size = next(net.parameters()).device, net.config.sample_size
    torch.manual_seed(seed)
    images, noise = (
        torch.randn(UNITS * DRAWS, 1, size, size).to(where, memory_format=torch.channels_last)
        for _ in range(2)
    )
    if spoiled is not None:
        images[DRAWS : 2 * DRAWS] = spoiled
    labels, level = torch.randint(4, (UNITS * DRAWS,)).to(where), torch.randn(UNITS * DRAWS).to(where)

    def losses() -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            by_draw = edm_loss(Denoiser(net), images, labels, noise_level(level, -1.2, 1.2), noise)
        return by_draw.view(UNITS, DRAWS).mean(1)

    return losses


def clipped_sum(engine: PerUnitGradients, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """(sum float64 [P] in units of the clip norm, norms [B]) of one microbatch."""
    where = engine.grads.device
    total = torch.zeros(engine.total, dtype=torch.int64, device=where)
    engine.backward(losses)
    result = engine.add_clipped_grads(total, CLIP, torch.ones(UNITS, dtype=torch.bool, device=where))
    assert not result.excluded
    return total.double() / GRID, result.norms


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a GPU's engine asks of torch for good is taken back after the test; its fp32 products are fp32 ones."""
    tf32, repeats = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(repeats)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "where",
    [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])],
)
def test_the_planned_engine_gives_the_references_norms_and_sum(where: str, precision: str) -> None:
    """What `build_engine` gives on a GPU; in the interpreter the same engine on the plan of an H100.

    bf16 rounds at other places than torch's autocast: neither is the truth, which fp32 is for both.
    """
    compute = ComputeConfig(microbatch=UNITS, precision=precision, memory_format="channels_last")
    net, bf16 = unet((8, 16), where), precision == "bf16"
    expected, norms = clipped_sum(PerUnitGradients(net, UNITS, DRAWS), unit_losses(net, 5))
    losses = unit_losses(net, 5, bf16)
    if where == "cuda":
        engine = build_engine(net, compute, DRAWS)
        found, ours = clipped_sum(engine, losses)
    else:
        plan = engine_plan(net, compute, DRAWS, EXPLAINED_MEMORY)
        with device.interpreted():
            engine = planned_engine(net, UNITS, DRAWS, plan, stored_dtype(compute), channels_last=True)
            found, ours = clipped_sum(engine, losses)
    assert isinstance(engine.store, PlannedStore)
    assert isinstance(engine.execution, FusedUNet)
    assert engine.grads.dtype == stored_dtype(compute)
    if bf16:
        plain, _ = clipped_sum(PerUnitGradients(net, UNITS, DRAWS), losses)
        assert (found - expected).norm() <= BF16[where] * (plain - expected).norm()
        torch.testing.assert_close(ours, norms, rtol=2.0**-6, atol=0.0)
    else:
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        torch.testing.assert_close(ours, norms, rtol=1e-5, atol=0.0)


@interpreted
def test_a_unit_that_is_replaced_changes_no_bit_of_what_the_others_add() -> None:
    """P1 on a GPU's path: statistics, sums over draws and attention are of one unit each."""
    net, found = unet((8,)), []
    engine = planned_engine(net, UNITS, DRAWS, mixed_plan(net))
    others = torch.tensor([True, False, True])
    for present, spoiled in ((others, None), (torch.ones(UNITS, dtype=torch.bool), torch.nan)):
        total = torch.zeros(engine.total, dtype=torch.int64)
        with device.interpreted():
            engine.backward(unit_losses(net, 5, spoiled=spoiled))
            result = engine.add_clipped_grads(total, CLIP, present)
        assert result.excluded == (spoiled is not None)
        found.append((total, result.norms[others], engine.grads[others]))
    assert found[0][0].any()
    assert all(torch.equal(before, after) for before, after in zip(*found, strict=True))


class Memory(TorchDispatchMode):
    """Notes every operation that makes or fills a tensor as large as an activation, and its dtype."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.seen = elements, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.elements:
                self.seen.add((operation.overloadpacket.__name__, tensor.dtype))
        return result


@interpreted
def test_under_bf16_no_activation_is_fp32_and_none_is_copied_to_another_layout() -> None:
    net, size, channels = unet((8,), size=16), 16, 8
    losses = unit_losses(net, 5, bf16=True)
    # Smaller than any activation of the upper level; images have one channel.
    memory = Memory(UNITS * DRAWS * size**2 * channels // 2)
    engine = planned_engine(net, UNITS, DRAWS, None, torch.bfloat16)
    with device.interpreted(), memory:
        engine.backward(losses)
    made = {name for name, dtype in memory.seen if dtype == torch.bfloat16}
    assert {"convolution", "convolution_backward", "empty", "empty_like"} <= made
    assert not made & {"clone", "copy_", "_to_copy", "contiguous", "cat", "add", "div", "silu"}
    assert not [name for name, dtype in memory.seen if dtype == torch.float32]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_sum_with_attention_over_more_than_384_tokens_is_the_same_twelve_times(bf16: bool) -> None:
    repeat_to_the_bit()
    torch.manual_seed(4)
    net = build_unet((32, 64), 24, 1, 4, False, blocks=1, attention=(24, 12)).cuda()
    engine = planned_engine(net, UNITS, DRAWS, None, torch.bfloat16 if bf16 else torch.float32)
    assert isinstance(engine.execution, FusedUNet)
    losses = unit_losses(net, 5, bf16)
    sums = [clipped_sum(engine, losses)[0] for _ in range(12)]
    assert sums[0].any()
    assert [number for number, total in enumerate(sums) if not torch.equal(total, sums[0])] == []


def mixed_plan(net: UNet2DModel) -> EnginePlan:
    """Every way in turn: convolutions stored or recomputed, linear layers of one position by factors too."""
    ways: dict[str, tuple[Way, ...]] = {
        "Conv2d": ("store", "recompute"),
        "Linear": ("factors", "store", "recompute"),
    }
    layers, seen = [], dict.fromkeys(ways, 0)
    for shape in unet_shapes(net):
        way: Way = "store"
        if shape.kind in ways and not shape.name.endswith(("to_q", "to_k", "to_v")):  # those go in one launch
            way = ways[shape.kind][seen[shape.kind] % len(ways[shape.kind])]
            seen[shape.kind] += 1
        layers.append(LayerPlan(shape, way, 0, 0.0))
    return EnginePlan(tuple(layers), UNITS, DRAWS, 0)


@pytest.mark.slow
@interpreted
def test_over_30_steps_of_a_unet_the_unnoised_sums_stay_those_of_the_reference() -> None:
    """At the same weights each step, which follow the reference's sums; another batch each step."""
    net = unet((8,))
    plan = mixed_plan(net)
    assert {layer.way for layer in plan.layers} == {"store", "recompute", "factors"}
    reference = PerUnitGradients(net, UNITS, DRAWS)
    fused = planned_engine(net, UNITS, DRAWS, plan, channels_last=True)
    weights = list(net.parameters())
    adam = torch.optim.Adam(weights, lr=1e-2)
    for number in range(30):
        losses = unit_losses(net, number)
        expected, norms = clipped_sum(reference, losses)
        with device.interpreted():
            total, ours = clipped_sum(fused, losses)
        assert (total - expected).norm() <= 1e-5 * expected.norm()
        torch.testing.assert_close(ours, norms, rtol=1e-5, atol=0.0)
        for weight, part in zip(weights, expected.float().split([w.numel() for w in weights]), strict=True):
            weight.grad = part.view(weight.shape) * (CLIP / UNITS)
        adam.step()


@interpreted
def test_a_network_that_runs_twice_in_a_loss_is_refused_rather_than_half_summed() -> None:
    net = unet((8,))
    losses = unit_losses(net, 1)
    engine = planned_engine(net, UNITS, DRAWS)
    with device.interpreted(), pytest.raises(GradientError, match="used twice in a forward"):
        engine.backward(lambda: losses() + losses())
