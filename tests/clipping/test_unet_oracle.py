"""The oracle for whole U-Nets with class labels and attention: batch-of-one autograd, every parameter covered."""

import pytest
import torch
from torch import Tensor, nn

from curriculumdp.clipping.dense_store import DenseStore
from curriculumdp.clipping.parameters import Parameters
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from curriculumdp.diffusion.networks import build_unet
from tests.clipping.conftest import LossOf, denoising_loss, oracle, unet

UNITS = 2
DRAWS = pytest.mark.parametrize("draws", [1, 3])
# size, image channels, channels of the levels, blocks, attention at.
NETS = {
    "one level, 8 px": (8, 1, (8,), 1, ()),
    "one level with attention, 10 px, colour": (10, 3, (8,), 1, (10,)),
    "two levels, 8 px, as the digits' config": (8, 1, (8, 16), 1, (4,)),
    "two levels, 28 px, as Fashion-MNIST's": (28, 1, (8, 8), 2, (14,)),
    "three levels, 12 px, colour": (12, 3, (8, 12, 16), 1, (6,)),
    "three levels, 28 px": (28, 1, (4, 8, 8), 1, (7,)),
}


def edm_unet(case: str) -> nn.Module:
    """A network of the table, with weights that are nowhere at a special point such as zero or one."""
    size, image_channels, channels, blocks, attention = NETS[case]
    torch.manual_seed(0)
    net = build_unet(channels, size, image_channels, 3, True, blocks=blocks, attention=attention, groups=2)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return net


def training_loss(net: nn.Module, samples: int) -> LossOf:
    """The loss of training per sample, [n], on fixed samples; classes in turn, the null class too."""
    torch.manual_seed(1)
    shape = (samples, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    images, noise = torch.rand(shape) * 2 - 1, torch.randn(shape)
    sigma, labels = noise_level(torch.randn(samples), -1.2, 1.2), torch.arange(samples) % 4

    def loss(net: nn.Module, which: slice) -> Tensor:
        dtype = next(net.parameters()).dtype
        parts = (t[which].to(dtype) for t in (sigma, noise))
        return edm_loss(Denoiser(net), images[which].to(dtype), labels[which], *parts)

    return loss


def by_unit(net: nn.Module, loss: LossOf, draws: int) -> dict[str, Tensor]:
    """The engine's gradients: name -> [units, *shape]."""
    dtype = next(net.parameters()).dtype
    engine = PerUnitGradients(net, UNITS, draws, DenseStore(Parameters(net), UNITS, dtype))
    engine.backward(lambda: loss(net, slice(None)).view(UNITS, draws).mean(1))
    return {
        name: engine.grads[:, at : at + shape.numel()].unflatten(1, shape)
        for name, shape, at in engine.parameters
    }


def zero_by_symmetry(name: str) -> bool:
    """A key's bias adds one number to all of a query's scores, which softmax takes out."""
    return name.endswith("to_k.bias")


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grad.double().flatten(1) for grad in grads.values()], 1)


@DRAWS
@pytest.mark.parametrize("case", NETS)
def test_in_fp64_every_parameter_agrees_to_1e_12(case: str, draws: int) -> None:
    net = edm_unet(case).double()
    loss = training_loss(net, UNITS * draws)
    truth, ours = oracle(net, loss, UNITS, draws), by_unit(net, loss, draws)
    assert list(ours) == [name for name, _ in net.named_parameters()]
    assert set(truth) == set(ours)
    largest = flat(truth).norm()
    for name, expected in truth.items():
        if zero_by_symmetry(name):
            assert ours[name].norm() < 1e-14 * largest
            assert expected.norm() < 1e-14 * largest
        else:
            assert expected.norm() > 1e-9 * largest, f"the test has no power for {name}"
            assert relative(ours[name], expected) < 1e-12, name


@DRAWS
@pytest.mark.parametrize("case", NETS)
def test_in_fp32_the_error_is_at_most_twice_that_of_plain_autograd(case: str, draws: int) -> None:
    net = edm_unet(case)
    loss = training_loss(net, UNITS * draws)
    plain, ours = oracle(net, loss, UNITS, draws), by_unit(net, loss, draws)
    truth = oracle(net.double(), loss, UNITS, draws)
    assert relative(flat(ours), flat(truth)) <= 2 * relative(flat(plain), flat(truth))
    learns = [name for name in truth if not zero_by_symmetry(name)]
    # One parameter's error is a draw of the forward's roundings, which differ between a batch and a sample.
    worst = max(relative(plain[name], truth[name]) for name in learns)
    for name in learns:
        assert relative(ours[name], truth[name]) <= 2 * worst, name
    for name in set(truth) - set(learns):
        assert ours[name].norm() <= 1e-6 * flat(truth).norm(), name


@pytest.mark.parametrize("draws", [1, 2])
def test_channels_last_images_and_weights_make_no_difference(draws: int) -> None:
    """Opacus gives seven convolutions of this network zero gradients: attention's output is channels_last."""
    net = unet((8, 16), size=8, image_channels=2).double()
    loss = denoising_loss(net, UNITS * draws, torch.float64)
    truth = oracle(net, loss, UNITS, draws)
    net.to(memory_format=torch.channels_last)

    def relaid(net: nn.Module, which: slice) -> Tensor:
        return loss(lambda x, *rest: net(x.contiguous(memory_format=torch.channels_last), *rest), which)

    ours = by_unit(net, relaid, draws)
    for name, expected in truth.items():
        if not zero_by_symmetry(name):
            assert relative(ours[name], expected) < 1e-12, name


@pytest.mark.parametrize("draws", [1, 2])
def test_how_units_are_packed_moves_the_clipped_sum_by_less_than_a_millionth(draws: int) -> None:
    units, clip_norm = 6, 0.05
    net = unet((8, 16), size=8)
    loss = denoising_loss(net, units * draws)
    sums = []
    for packed in (1, 2, 3, 6, 4):
        engine = PerUnitGradients(net, packed, draws)
        total = torch.zeros(engine.total, dtype=torch.int64)
        for first in range(0, units, packed):
            rows = torch.arange(first * draws, (first + packed) * draws) % (units * draws)
            present = torch.arange(first, first + packed) < units  # the last microbatch of 4 is half padding
            engine.backward(lambda rows=rows, packed=packed: loss(net, rows).view(packed, draws).mean(1))
            norms = engine.add_clipped_grads(total, clip_norm, present).norms
            assert (norms > clip_norm).any(), "the test has no power: nothing is clipped"
        sums.append(total.double())
    for other in sums[1:]:
        assert (other - sums[0]).norm() <= 1e-6 * sums[0].norm()
