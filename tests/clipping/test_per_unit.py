"""The engine around the layers: what it refuses, what it leaves as it was, and what it accumulates."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from curriculumdp.clipping.per_unit import GradientError, PerUnitGradients

UNITS, DRAWS = 3, 2
PRESENT = torch.ones(UNITS, dtype=torch.bool)


class Net(nn.Module):
    """Two projections, the second used as often as asked."""

    def __init__(self, uses: int = 1) -> None:
        super().__init__()
        self.first, self.second, self.uses = nn.Linear(4, 5), nn.Linear(5, 5), uses

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for _ in range(self.uses):
            x = torch.tanh(self.second(x))
        return x


def losses_of(net: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: net(x).square().sum(1).view(UNITS, DRAWS).mean(1)


def samples() -> Tensor:
    return torch.randn(UNITS * DRAWS, 4)


def by_autograd(net: nn.Module, x: Tensor) -> Tensor:
    """Batch-of-one gradients, flat [units, P]."""
    rows = []
    for unit in x.split(DRAWS):
        grads = torch.autograd.grad(
            net(unit).square().sum(1).mean(), [p for p in net.parameters() if p.requires_grad]
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_a_weight_used_again_adds_to_its_gradient_before_any_norm(uses):
    net, x = Net(uses), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    for _ in range(2):  # the second backward starts afresh
        engine.backward(losses_of(net, x))
        torch.testing.assert_close(engine.grads, by_autograd(net, x), rtol=1e-5, atol=1e-6)
    total = torch.zeros(engine.total, dtype=torch.int64)
    norms = engine.add_clipped_grads(total, 1.0, PRESENT).norms
    torch.testing.assert_close(norms.float(), by_autograd(net, x).norm(dim=1))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_runs_inside_the_swap(reentrant):
    net, x = Net(), samples()
    expected = by_autograd(net, x)
    engine = PerUnitGradients(net, UNITS, DRAWS)

    def forward(x: Tensor) -> Tensor:
        h = net.first(x)
        return checkpoint(lambda h: torch.tanh(net.second(torch.tanh(h))), h, use_reentrant=reentrant)

    engine.backward(losses_of(forward, x))
    torch.testing.assert_close(engine.grads, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", ["first.weight", "first.bias", "second.weight", "second.bias"])
def test_a_frozen_parameter_has_no_place_and_the_others_keep_theirs(frozen):
    net, x = Net(), samples()
    net.get_parameter(frozen).requires_grad_(False)
    engine = PerUnitGradients(net, UNITS, DRAWS)
    assert frozen not in [segment.name for segment in engine.parameters]
    engine.backward(losses_of(net, x))
    torch.testing.assert_close(engine.grads, by_autograd(net, x), rtol=1e-5, atol=1e-6)
    assert net.get_parameter(frozen).grad is None


def test_a_frozen_first_layer_is_no_reason_to_miss_the_second():
    net, x = Net(), samples()
    net.first.requires_grad_(False)
    engine = PerUnitGradients(net, UNITS, DRAWS)
    engine.backward(losses_of(net, x))
    torch.testing.assert_close(engine.grads, by_autograd(net, x), rtol=1e-5, atol=1e-6)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(GradientError, match="no trainable parameter"):
        PerUnitGradients(Net().requires_grad_(False), UNITS, DRAWS)


def test_the_losses_are_returned_and_no_gradient_is_left_on_the_parameters():
    net, x = Net(), samples()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    losses = PerUnitGradients(net, UNITS, DRAWS).backward(losses_of(net, x))
    torch.testing.assert_close(losses, losses_of(net, x)().detach())
    assert not losses.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_backward_works_where_gradients_are_switched_off_around_it():
    net, x = Net(), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    with torch.no_grad():
        engine.backward(losses_of(net, x))
    torch.testing.assert_close(engine.grads, by_autograd(net, x), rtol=1e-5, atol=1e-6)


REFUSED: dict[str, tuple[Callable[[Net, Tensor], Tensor], str]] = {
    "a layer that is not used": (lambda net, x: net.first(x), r"second\.weight got no gradient"),
    "a layer without grad": (
        lambda net, x: net.second(_without_grad(net.first, x)),
        r"first\.weight got no gradient",
    ),
    "a layer cut off by detach": (
        lambda net, x: net.second(net.first(x).detach()),
        r"first\.weight got no gradient",
    ),
    "a weight used by itself": (
        lambda net, x: F.linear(torch.tanh(net.first(x)), net.second.weight),
        r"second\.weight was used outside its layer's forward",
    ),
    "a weight used by itself as well": (
        lambda net, x: net(x) + net.second.bias,
        r"second\.bias was used outside its layer's forward",
    ),
    "a penalty on the weights": (
        lambda net, x: net(x) + net.first.weight.square().sum(),
        r"first\.weight was used outside",
    ),
    "samples that are mixed": (
        lambda net, x: net(x.view(2, 3, 4)).flatten(0, 1),
        r"first saw 2 samples.*3 × 2",
    ),
}


def _without_grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("case", REFUSED)
def test_a_gradient_that_is_missing_or_incomplete_is_refused_by_name_and_never_summed(case):
    forward, reason = REFUSED[case]
    net, x = Net(), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    engine.backward(losses_of(net, x))  # one that is complete must not stand in for the next
    with pytest.raises(GradientError, match=reason):
        engine.backward(losses_of(lambda x: forward(net, x), x))
    total = torch.zeros(engine.total, dtype=torch.int64)
    with pytest.raises(GradientError, match="complete backward"):
        engine.add_clipped_grads(total, 1.0, PRESENT)
    assert not total.any()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("shape", [(), (1,), (UNITS * DRAWS,), (UNITS, DRAWS)], ids=str)
def test_a_loss_that_is_not_one_number_per_unit_is_refused(shape):
    net, x = Net(), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    with pytest.raises(GradientError, match="not one per unit"):
        engine.backward(lambda: net(x).sum() * torch.ones(shape))


def test_a_backward_is_summed_once():
    net, x = Net(), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    total = torch.zeros(engine.total, dtype=torch.int64)
    with pytest.raises(GradientError, match="complete backward"):
        engine.add_clipped_grads(total, 1.0, PRESENT)
    engine.backward(losses_of(net, x))
    engine.add_clipped_grads(total, 1.0, PRESENT)
    once = total.clone()
    with pytest.raises(GradientError, match="a unit would count twice"):
        engine.add_clipped_grads(total, 1.0, PRESENT)
    assert torch.equal(total, once)


def test_outside_a_backward_the_network_is_what_it_was():
    net, x = Net(), samples()
    own = lambda x: F.linear(x, net.second.weight, net.second.bias)  # noqa: E731
    net.second.forward = own
    engine = PerUnitGradients(net, UNITS, DRAWS)
    engine.backward(losses_of(net, x))
    with pytest.raises(ZeroDivisionError):
        engine.backward(lambda: 1 / 0)
    assert net.second.forward is own
    assert "forward" not in net.first.__dict__
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_an_exception_in_the_forward_leaves_nothing_to_be_summed():
    net, x = Net(), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    engine.backward(losses_of(net, x))
    with pytest.raises(ZeroDivisionError):
        engine.backward(lambda: 1 / 0)
    with pytest.raises(GradientError, match="complete backward"):
        engine.add_clipped_grads(torch.zeros(engine.total, dtype=torch.int64), 1.0, PRESENT)


def test_segments_lie_in_the_order_of_named_parameters_without_gaps():
    net = Net()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    offset = 0
    for segment, (name, parameter) in zip(engine.parameters, net.named_parameters(), strict=True):
        assert segment == (name, parameter.shape, offset)
        offset += parameter.numel()
    assert engine.total == offset == engine.grads.shape[1]


def test_the_same_microbatch_gives_the_same_bits_again():
    net, x = Net(), samples()
    engine = PerUnitGradients(net, UNITS, DRAWS)
    sums = []
    for _ in range(3):
        total = torch.zeros(engine.total, dtype=torch.int64)
        engine.backward(losses_of(net, x))
        engine.add_clipped_grads(total, 0.1, PRESENT)
        sums.append(total)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
