"""A microbatch can be captured: static buffers in, no look at a value from the host, the plain path's sums out."""

import dataclasses
import gc
import os
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from curriculumdp.clipping.cuda_graph import Captured, Static
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.clipping.planned_engine import planned_engine
from curriculumdp.curriculum.batch import UnitBatch
from curriculumdp.curriculum.clipped_sum import Microbatch, Seen, figures_of, figures_table
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss
from dpkernels import device
from tests.clipping.conftest import unet
from tests.clipping.test_planned_store import CLIP, DRAWS, UNITS, WAYS, Net, plan_of
from tests.support.recorded import HostRead, Recorded, record_graphs

interpreted = pytest.mark.skipif(
    not device.INTERPRETER, reason="needs TRITON_INTERPRET=1, set before triton is first imported"
)


def batch(seed: int, size: int = 8, channels: int = 2, where: str = "cpu") -> UnitBatch:
    torch.manual_seed(seed)
    shape = (UNITS * DRAWS, channels, size, size)
    images, noise = torch.randn(shape), torch.randn(shape)
    made = UnitBatch(
        images,
        torch.randint(4, (UNITS * DRAWS,)),
        torch.randn(UNITS * DRAWS),
        noise,
        torch.rand(UNITS) < 0.7,
    )
    return UnitBatch(**{name: tensor.to(where) for name, tensor in made.tensors().items()})


def net_losses(net: Net) -> Callable[[UnitBatch], Tensor]:
    return lambda b: net(b.images, b.labels).square().sum(1).view(UNITS, DRAWS).mean(1)


def summed(
    engine: PerUnitGradients, losses: Callable[[UnitBatch], Tensor], batches: list[UnitBatch]
) -> Tensor:
    total = torch.zeros(engine.total, dtype=torch.int64)
    work = Microbatch(engine, losses, CLIP, total, capture=False)
    for one in batches:
        work.add(one)
    return total


@pytest.fixture
def graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    record_graphs(monkeypatch)


def odd_batches() -> list[UnitBatch]:
    """Microbatches of which each would leave something to the next: a unit that is not finite, nobody, padding."""
    spoiled, nobody, last = batch(7), batch(8), batch(9)
    spoiled.images[DRAWS] = torch.nan
    absent, alone = torch.zeros(UNITS, dtype=torch.bool), torch.arange(UNITS) == 1
    return [
        dataclasses.replace(spoiled, present=~absent),
        dataclasses.replace(nobody, present=absent),
        dataclasses.replace(last, present=alone),
    ]


@interpreted
def test_captured_microbatches_add_each_unit_once_and_nothing_of_the_microbatch_before(graphs_on_the_cpu):
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 4), nn.Tanh(), nn.Linear(4, 3))
    ways = plan_of({"1": "store", "3": "recompute"})
    batches = odd_batches()

    def losses(b: UnitBatch) -> Tensor:
        return net(b.images).square().sum(1).view(UNITS, DRAWS).mean(1)

    total = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.int64)
    with device.interpreted():
        work = Microbatch(planned_engine(net, UNITS, DRAWS, ways), losses, CLIP, total, capture=True)
        seen = [work.add(one) for one in batches]
        plain = summed(planned_engine(net, UNITS, DRAWS, ways), losses, batches)
    assert plain.any()
    assert torch.equal(total, plain)
    assert same(total, summed(PerUnitGradients(net, UNITS, DRAWS), losses, batches), 1e-6)
    assert [int(part.excluded) for part in seen] == [1, 0, 0]
    assert [part.present.tolist() for part in seen] == [one.present.tolist() for one in batches]


def same(mine: Tensor, theirs: Tensor, within: float) -> bool:
    return bool((mine - theirs).double().norm() <= within * theirs.double().norm())


@interpreted
@pytest.mark.parametrize("ways", WAYS[2:3], ids=str)
def test_a_recorded_microbatch_replayed_on_other_units_adds_what_the_plain_path_adds(ways, monkeypatch):
    torch.manual_seed(4)
    net = Net()
    losses = net_losses(net)
    buffers = Static(batch(0).tensors())
    total = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.int64)
    with device.interpreted():
        work = Microbatch(
            planned_engine(net, UNITS, DRAWS, plan_of(ways)), losses, CLIP, total, capture=False
        )
        work.add(UnitBatch(**buffers.tensors))  # buffers are made in the first call
        with Recorded(monkeypatch) as recorded:
            seen = work.add(UnitBatch(**buffers.tensors))
        total.zero_()
        for seed in (7, 8):
            buffers.take(batch(seed).tensors())
            recorded.replay()
        engine = planned_engine(net, UNITS, DRAWS, plan_of(ways))
        plain = summed(engine, losses, [batch(7), batch(8)])
    assert torch.equal(total, plain)
    assert same(total, summed(PerUnitGradients(net, UNITS, DRAWS), losses, [batch(7), batch(8)]), 1e-6)
    torch.testing.assert_close(seen.present, batch(8).present)


def test_the_network_and_its_loss_look_at_no_value(monkeypatch):
    net = unet((8, 16))
    denoiser = Denoiser(net)
    engine = PerUnitGradients(net, UNITS, DRAWS)
    b = batch(1, channels=1)
    with Recorded(monkeypatch):
        engine.backward(
            lambda: edm_loss(denoiser, b.images, b.labels, b.level.exp(), b.noise).view(UNITS, DRAWS).mean(1)
        )


def test_the_recorder_itself_notices_a_look(monkeypatch):
    values = torch.arange(3.0)
    for look in (lambda: values.sum().item(), lambda: values[values > 1], lambda: bool(values[0])):
        with pytest.raises(HostRead), Recorded(monkeypatch):
            look()


def test_static_buffers_stay_in_place_and_refuse_another_shape():
    buffers = Static({"x": torch.zeros(3, 2)})
    place = buffers.tensors["x"].data_ptr()
    buffers.take({"x": torch.ones(3, 2)})
    assert buffers.tensors["x"].data_ptr() == place
    assert buffers.tensors["x"].sum() == 6
    for other in (torch.ones(1, 2), torch.ones(3, 2, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"x is torch\..* captured"):
            buffers.take({"x": other})


def outputs_of(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"y": net(tensors["x"])}


def test_a_graph_keeps_alive_what_its_body_reads(graphs_on_the_cpu):
    """The graph replays on addresses: were the weights freed, it would read whatever lies there next."""
    net = nn.Linear(2, 1)
    captured = Captured(partial(outputs_of, net), {"x": torch.ones(3, 2)})
    held = weakref.ref(net)
    del net
    gc.collect()
    assert held() is not None
    del captured
    gc.collect()
    assert held() is None, "the graph's memory is never given back"


def test_the_figures_of_a_step_leave_out_padding_and_say_nothing_of_no_one():
    here, gone = torch.tensor([True, False]), torch.tensor([False, False])
    values = torch.tensor([3.0, 99.0])
    counted = Seen(values, values, here, torch.tensor(0))
    assert of_ranks([[counted, Seen(values, values, gone, torch.tensor(2))]]) == {
        "excluded": 2.0,
        "loss": 3.0,
        "norm": 3.0,
    }
    assert of_ranks([[]]) == {"excluded": 0.0}
    assert of_ranks([[Seen(values, values, gone, torch.tensor(0))]]) == {"excluded": 0.0}


def of_ranks(shares: list[list[Seen]]) -> dict[str, float]:
    """The figures of a step whose microbatches were dealt out to ranks."""
    microbatches, ranks = sum(map(len, shares)), len(shares)
    return figures_of(
        sum(
            (figures_table(seen, rank, ranks, microbatches, 2) for rank, seen in enumerate(shares)),
            start=torch.zeros(microbatches, 4, 2, dtype=torch.float64),
        )
    )


def test_the_figures_of_a_step_are_those_of_all_ranks_and_never_nan():
    both = torch.tensor([True, True])
    nan, inf = float("nan"), float("inf")
    seen = [
        Seen(torch.tensor([1.0, nan]), torch.tensor([2.0, inf]), both, torch.tensor(1)),
        Seen(torch.tensor([3.0, inf]), torch.tensor([4.0, 9.0]), both, torch.tensor(0)),
        Seen(torch.tensor([8.0, 5.0]), torch.tensor([5.0, nan]), both, torch.tensor(1)),
    ]
    found = of_ranks([seen])
    assert found == {"excluded": 2.0, "loss": 4.0, "norm": 4.0}
    assert of_ranks([seen[::2], seen[1::2]]) == found
    assert of_ranks([seen[:1], seen[1:2], seen[2:]]) == found
    assert of_ranks([[Seen(both * nan, both * nan, both, torch.tensor(2))]]) == {"excluded": 2.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_graph_and_plain_path_give_the_same_sums_on_a_gpu(bf16):
    net = unet((32, 64), size=16).cuda()
    denoiser = Denoiser(net)

    def losses(b: UnitBatch) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            each = edm_loss(denoiser, b.images, b.labels, b.level.exp(), b.noise)
        return each.view(UNITS, DRAWS).mean(1)

    sums = []
    for capture in (True, False, True):
        engine = planned_engine(net, UNITS, DRAWS, channels_last=True)
        total = torch.zeros(engine.total, dtype=torch.int64, device="cuda")
        work = Microbatch(engine, losses, CLIP, total, capture=capture)
        for seed in (1, 2, 3):
            work.add(batch(seed, 16, 1, "cuda"))
        sums.append(total)
    assert torch.equal(sums[0], sums[2]), "a graph's sums do not repeat"
    assert same(sums[0], sums[1], 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_plain_microbatch_never_waits_for_the_gpu():
    net = unet((32, 64), size=16).cuda()
    denoiser = Denoiser(net)
    engine = planned_engine(net, UNITS, DRAWS)
    total = torch.zeros(engine.total, dtype=torch.int64, device="cuda")
    work = Microbatch(
        engine,
        lambda b: edm_loss(denoiser, b.images, b.labels, b.level.exp(), b.noise).view(UNITS, DRAWS).mean(1),
        CLIP,
        total,
        capture=False,
    )
    one = batch(1, 16, 1, "cuda")
    work.add(one)
    torch.cuda.set_sync_debug_mode("error")
    try:
        work.add(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_capturing_leaves_its_warm_up_out_of_the_sum():
    body_total = torch.zeros(1, dtype=torch.int64, device="cuda")

    def body(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        body_total.add_(tensors["x"])
        return {"x": tensors["x"] * 2}

    one = {"x": torch.ones(1, dtype=torch.int64, device="cuda")}
    captured = Captured(body, one)
    body_total.zero_()
    assert captured({"x": one["x"] * 5})["x"] == 10
    assert body_total == 5
