"""The Triton engine gives the reference's norms and integer sums, whichever way its layers are done."""

import os
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from curriculumdp.clipping.dense_store import DenseStore
from curriculumdp.clipping.layer_plan import EnginePlan, LayerPlan, LayerShape, Way
from curriculumdp.clipping.parameters import Parameters
from curriculumdp.clipping.per_unit import GradientError, PerUnitGradients
from curriculumdp.clipping.planned_engine import planned_engine
from curriculumdp.clipping.planned_store import PlannedStore
from dpkernels import device

UNITS, DRAWS, CLIP = 3, 2, 0.4
pytestmark = pytest.mark.skipif(
    not device.INTERPRETER, reason="needs TRITON_INTERPRET=1, set before triton is first imported"
)


class Net(nn.Module):
    """One of each layer: a class table, a strided convolution, a norm, attention-like and rank-one projections."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 6)
        self.first = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.GroupNorm(2, 6)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.query = nn.Linear(6, 5, bias=False)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.norm(self.first(x)) + self.table(labels)[..., None, None]
        h = torch.tanh(self.grouped(h)).flatten(2).transpose(1, 2)
        return self.out(torch.tanh(self.query(h)).mean(1))


def plan_of(ways: dict[str, Way]) -> EnginePlan:
    shape = LayerShape("", "", 1, 1, 1, 1, 1)
    layers = [
        LayerPlan(LayerShape(name, *list(vars(shape).values())[1:]), way, 0, 0.0)
        for name, way in ways.items()
    ]
    return EnginePlan(tuple(layers), UNITS, DRAWS, 0)


def step(net: nn.Module, engine: PerUnitGradients, present: Tensor) -> tuple[Tensor, Tensor, int]:
    """(sum int64 [P], norms [B], excluded) of one microbatch."""
    torch.manual_seed(5)
    x, labels = torch.randn(UNITS * DRAWS, 2, 8, 8), torch.randint(4, (UNITS * DRAWS,))
    loss: Callable[[], Tensor] = lambda: net(x, labels).square().sum(1).view(UNITS, DRAWS).mean(1)  # noqa: E731
    total = torch.arange(engine.total)
    engine.backward(loss)
    result = engine.add_clipped_grads(total, CLIP, present)
    return total, result.norms, result.excluded


WAYS: list[dict[str, Way]] = [
    {},
    {"first": "recompute", "query": "recompute"},
    {"out": "factors", "first": "recompute"},
    {"table": "store", "first": "recompute", "query": "recompute", "out": "recompute"},
]


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_every_way_gives_the_references_norms_and_sums(ways: dict[str, Way]) -> None:
    torch.manual_seed(4)
    net = Net()
    present = torch.tensor([True, False, True])
    expected = step(net, PerUnitGradients(net, UNITS, DRAWS), present)
    with device.interpreted():
        fused = step(net, planned_engine(net, UNITS, DRAWS, plan_of(ways)), present)
    torch.testing.assert_close(fused[1][present], expected[1][present], rtol=1e-6, atol=0.0)
    error = (fused[0] - expected[0]).double().norm() / expected[0].double().norm()
    assert error < 1e-6
    assert fused[2] == expected[2] == 0


class Projections(nn.Module):
    """Query, key and value of one input, which go in one launch; `times` 2: used again, where they may not."""

    def __init__(self, times: int, bias: bool) -> None:
        super().__init__()
        self.times = times
        self.query, self.key, self.value = (nn.Linear(6, 6, bias=bias) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(2)
            x = torch.tanh(weights @ self.value(x))
        return x.mean(1)


@pytest.mark.parametrize(("times", "bias"), [(1, True), (1, False), (2, True)])
def test_three_projections_of_one_input_give_the_references_norms_and_sums(times: int, bias: bool) -> None:
    torch.manual_seed(4)
    net, x = Projections(times, bias), torch.randn(UNITS * DRAWS, 5, 6)
    present, found = torch.tensor([True, False, True]), []
    with device.interpreted():
        for engine in (PerUnitGradients(net, UNITS, DRAWS), planned_engine(net, UNITS, DRAWS)):
            for _ in range(2):  # the second microbatch finds the buffers of the first
                total = torch.zeros(engine.total, dtype=torch.int64)
                engine.backward(lambda: net(x).square().sum(1).view(UNITS, DRAWS).mean(1))
                norms = engine.add_clipped_grads(total, CLIP, present).norms
            found.append((total, norms))
    (expected, norms), (total, ours) = found
    torch.testing.assert_close(ours, norms, rtol=1e-6, atol=0.0)
    assert (total - expected).double().norm() < 1e-6 * expected.double().norm()


@pytest.mark.parametrize("way", ["store", "recompute"])
@pytest.mark.parametrize("what", ["two sources", "projections", "channels"])
def test_what_the_fused_execution_hands_over_gives_the_references_norms_and_sums(what: str, way: Way) -> None:
    torch.manual_seed(4)
    net = nn.Module()
    samples, present, found = UNITS * DRAWS, torch.tensor([True, False, True]), []
    x, grad = torch.randn(samples, 6, 4, 3), torch.randn(samples, 5, 4, 3)
    sums = torch.randn(samples, 3, 4)
    if what == "two sources":
        net.shortcut = nn.Conv2d(6, 5, 1)
    elif what == "projections":
        net.query, net.key, net.value = (nn.Linear(4, 5) for _ in range(3))
    else:
        net.norm, net.conv1 = nn.GroupNorm(2, 4), nn.Conv2d(5, 4, 1)
    layers = dict(net.named_children())
    ways = {name: "store" if name == "norm" else way for name in layers}
    apart = frozenset({"norm.weight", "norm.bias", "conv1.bias"})
    for store in (DenseStore(Parameters(net), UNITS), PlannedStore(net, UNITS, ways, apart=apart)):
        store.parameters.begin()
        store.begin()
        with device.interpreted() if isinstance(store, PlannedStore) else nullcontext():
            if what == "two sources":
                store.conv2d(net.shortcut, x.split((2, 4), 1), grad, bias=True)
            elif what == "projections":
                tokens = x.flatten(2).transpose(1, 2)[:, :, :4].contiguous()
                store.projections(list(layers.values()), tokens, torch.cat([grad.flatten(2)] * 3, 1).mT)
            else:
                store.channels([net.norm.weight, net.norm.bias, net.conv1.bias], sums)
                store.conv2d(net.conv1, (grad,), x[:, :4], bias=False)
            store.parameters.require_complete()
            total = torch.zeros(store.parameters.total, dtype=torch.int64)
            found.append((total, store.add_clipped(total, CLIP, present).norms))
    (expected, norms), (total, ours) = found
    torch.testing.assert_close(ours, norms, rtol=1e-6, atol=0.0)
    assert (total - expected).double().norm() < 1e-6 * expected.double().norm()


@pytest.mark.parametrize("ways", WAYS[:2], ids=str)
def test_the_sum_is_exactly_that_of_what_each_unit_adds_alone(ways: dict[str, Way]) -> None:
    """Each unit is rounded by itself: then neither order nor packing can show in the sum."""
    torch.manual_seed(4)
    net = Net()
    begun = torch.arange(sum(p.numel() for p in net.parameters()))  # what `step` adds to
    with device.interpreted():
        engine = planned_engine(net, UNITS, DRAWS, plan_of(ways))
        together, *alone = (
            step(net, engine, present)[0] - begun
            for present in (torch.ones(UNITS, dtype=torch.bool), *torch.eye(UNITS, dtype=torch.bool))
        )
    assert all(part.any() for part in alone)
    assert torch.equal(together, sum(alone))


def test_recomputed_layers_take_no_place_in_the_stored_gradients() -> None:
    net = Net()
    engine = planned_engine(net, UNITS, DRAWS, plan_of({"first": "recompute", "query": "recompute"}))
    left_out = sum(p.numel() for layer in (net.first, net.query) for p in layer.parameters())
    assert engine.grads.shape == (UNITS, engine.total - left_out)


@pytest.mark.parametrize("ways", WAYS[:2], ids=str)
def test_a_unit_that_is_not_finite_is_left_out_and_counted(ways: dict[str, Way]) -> None:
    torch.manual_seed(4)
    net = Net()
    x, labels = torch.randn(UNITS * DRAWS, 2, 8, 8), torch.randint(4, (UNITS * DRAWS,))
    spoiled = x.clone()
    spoiled[2] = torch.inf  # the second unit's
    sums = []
    with device.interpreted():
        for images, present in ((x, [True, False, True]), (spoiled, [True, True, True])):
            engine = planned_engine(net, UNITS, DRAWS, plan_of(ways))
            total = torch.zeros(engine.total, dtype=torch.int64)
            engine.backward(
                lambda images=images: net(images, labels).square().sum(1).view(UNITS, DRAWS).mean(1)
            )
            result = engine.add_clipped_grads(total, CLIP, torch.tensor(present))
            sums.append((total, result.excluded))
    assert torch.equal(sums[0][0], sums[1][0])
    assert (sums[0][1], sums[1][1]) == (0, 1)


@pytest.mark.parametrize("ways", [{}, {"second": "recompute"}], ids=str)
def test_layers_that_share_a_parameter_are_refused_by_name(ways: dict[str, Way]) -> None:
    """The norms would be those of two parts, and what a microbatch left behind would go into the next one's sum."""
    net = nn.Module()
    net.first, net.second = nn.Linear(4, 4), nn.Linear(4, 4)
    net.second.weight = net.first.weight
    with pytest.raises(GradientError, match="first and second share a parameter"):
        planned_engine(net, UNITS, DRAWS, plan_of(ways))


def test_a_backward_is_summed_once() -> None:
    net = Net()
    with device.interpreted():
        engine = planned_engine(net, UNITS, DRAWS)
        present = torch.ones(UNITS, dtype=torch.bool)
        total, *_ = step(net, engine, present)
        with pytest.raises(GradientError, match="a unit would count twice"):
            engine.add_clipped_grads(total, CLIP, present)


@pytest.mark.parametrize("way", ["recompute", "factors"])
def test_a_layer_used_twice_is_refused_where_its_gradient_is_not_stored(way: Way) -> None:
    """The norm would be its last use's, the sum that of both."""
    net = nn.Sequential(nn.Linear(3, 3))
    x = torch.ones(UNITS * DRAWS, 3)
    with device.interpreted():
        engine = planned_engine(net, UNITS, DRAWS, plan_of({"0": way}))
        with pytest.raises(GradientError, match="a Linear is used twice"):
            engine.backward(lambda: net(torch.tanh(net(x))).sum(1).view(UNITS, DRAWS).mean(1))
    with pytest.raises(GradientError, match="complete backward"):
        engine.add_clipped_grads(
            torch.zeros(12, dtype=torch.int64), CLIP, torch.ones(UNITS, dtype=torch.bool)
        )


@pytest.mark.parametrize("way", ["store", "recompute", "factors"])
def test_a_unit_whose_gradient_overflows_fp32_alone_adds_nothing(way: Way) -> None:
    """Its norm in float64 is finite, and an infinity cast to an integer would be the largest of them."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.fill_(1e-20)
    net = nn.Sequential(layer)
    x, pull = torch.ones(UNITS * DRAWS, 3), torch.ones(UNITS * DRAWS)
    x[:DRAWS], pull[:DRAWS] = 1e20, 2e25  # the first unit's: their product is 2e45
    sums = []
    with device.interpreted():
        for present in ([False, True, True], [True, True, True]):
            engine = planned_engine(net, UNITS, DRAWS, plan_of({"0": way}))
            sums.append(torch.zeros(engine.total, dtype=torch.int64))
            losses = engine.backward(lambda: (net(x).sum(1) * pull).view(UNITS, DRAWS).mean(1))
            assert losses.isfinite().all()
            engine.add_clipped_grads(sums[-1], CLIP, torch.tensor(present))
    assert sums[0].any()
    assert torch.equal(sums[0], sums[1])


def test_over_a_training_run_the_unnoised_sums_stay_those_of_the_reference() -> None:
    """At the same weights each step; the weights follow the reference's sums."""
    torch.manual_seed(4)
    net = Net()
    present = torch.ones(UNITS, dtype=torch.bool)
    reference = PerUnitGradients(net, UNITS, DRAWS)
    fused = planned_engine(net, UNITS, DRAWS, plan_of(WAYS[1]))
    for _ in range(30):
        expected = step(net, reference, present)[0]
        with device.interpreted():
            total = step(net, fused, present)[0]
        assert (total - expected).double().norm() <= 1e-5 * expected.double().norm()
        mean = expected.double() * (CLIP / 2.0**36 / UNITS)
        with torch.no_grad():
            parts = mean.float().split([p.numel() for p in net.parameters()])
            for parameter, part in zip(net.parameters(), parts, strict=True):
                parameter.sub_(part.view(parameter.shape), alpha=0.1)
