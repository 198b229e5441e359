"""A step repeats to the bit, or it is refused in one line: what a GPU is asked for, seen as far as a CPU shows it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from curriculumdp.clipping.planned_engine import planned_engine
from curriculumdp.curriculum import private, warmup
from curriculumdp.curriculum.batch import UnitBatch
from curriculumdp.curriculum.central import CentralImages
from curriculumdp.curriculum.clipped_sum import Microbatch
from curriculumdp.curriculum.dry_step import DryStepError, dry_step
from curriculumdp.curriculum.engine import repeat_to_the_bit
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.curriculum.train import PHASE_CLASSES
from curriculumdp.curriculum.warmup import WarmupPhase
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss
from curriculumdp.diffusion.networks import build_unet
from curriculumdp.world import one_process
from dpkernels import device

# What raises on a GPU, from the docstring of torch.use_deterministic_algorithms (2.11 to 2.13: "will throw a
# RuntimeError when mode=True"), by the names under which operations are dispatched. Of those that raise for some
# arguments alone (cumsum of floats, bincount with weights, scatter_reduce by prod) the name stands for all.
DO_NOT_REPEAT = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool1d", "max_unpool2d", "max_unpool3d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward"),
    *("upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("nll_loss_forward", "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward"),
    *("_embedding_bag_dense_backward", "_embedding_bag_backward", "put", "put_", "histc", "bincount"),
    *("median", "nanmedian", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("cumsum", "cumsum_", "scatter_reduce", "scatter_reduce_", "resize"),
}


class Recorder(TorchDispatchMode):
    """Keeps the name of every operation, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def flags() -> Iterator[None]:
    """torch's flags are afterwards what they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def test_algorithms_that_do_not_repeat_raise_and_fp32_is_fp32(flags):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    repeat_to_the_bit()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), (
        "attention's backward then keeps the algorithm that does not repeat"
    )
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def noise_images(run: Run) -> CentralImages:
    data = run.config.data
    shape = (20, data.channels, data.size, data.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return CentralImages(pixels, torch.arange(20) % data.classes)


@pytest.fixture
def attending(make_run, digits) -> tuple[Run, State]:
    """A run whose network attends at full resolution too, with all that draws and labels can be."""
    run, state = make_run(digits, one_process(), model__attention=(8, 4), private__label_dropout=0.1)
    state.central = noise_images(run)
    return run, state


def private_sum(run: Run, state: State) -> Tensor:
    return PrivatePhase(run).clipped_sum(run, state, 0, torch.arange(9).numpy())[0]


def test_both_kinds_of_training_run_under_the_flag(attending, flags):
    run, state = attending
    repeat_to_the_bit()
    assert torch.equal(private_sum(run, state), private_sum(run, state))
    before = state.weights.clone()
    WarmupPhase(run).step(run, state, 0)
    assert not torch.equal(state.weights, before)


def recorded(work: Callable[[], object]) -> set[str]:
    recorder = Recorder()
    with recorder:
        work()
    assert len(recorder.seen) > 20, "the test has no power: hardly any operation was seen"
    return recorder.seen


def test_no_operation_of_a_private_microbatch_is_one_that_does_not_repeat(attending):
    run, state = attending
    phase = PrivatePhase(run)
    phase.clipped_sum(run, state, 0, torch.arange(3).numpy())
    batch = phase._draw(run, 0, torch.arange(8).numpy())
    seen = recorded(lambda: phase.work.add(batch))
    assert {"convolution", "native_group_norm"} <= seen
    assert not seen & DO_NOT_REPEAT


@pytest.mark.skipif(
    not device.INTERPRETER, reason="needs TRITON_INTERPRET=1, set before triton is first imported"
)
def test_no_operation_beside_the_kernels_of_a_gpus_engine_is_one_that_does_not_repeat(make_run, digits):
    run, state = make_run(digits, one_process(), model__channels=(8,), compute__microbatch=2)
    phase = PrivatePhase(run)
    batch = phase._draw(run, 0, torch.arange(2).numpy())
    denoiser = Denoiser(state.net)
    engine = planned_engine(state.net, 2, run.config.private.draws)
    total = torch.zeros_like(state.weights, dtype=torch.int64)
    work = Microbatch(engine, lambda b: phase._unit_losses(run, denoiser, b), 1.0, total, capture=False)
    with device.interpreted():
        seen = recorded(lambda: work.add(batch))
    assert not seen & DO_NOT_REPEAT


def test_no_operation_of_a_warm_up_step_is_one_that_does_not_repeat(attending, monkeypatch):
    run, state = attending
    phase = WarmupPhase(run)
    batch = phase._batch(state, 0, run.config.data.classes)  # augmented on the CPU, whatever the device
    monkeypatch.setattr(WarmupPhase, "_batch", lambda *_: batch)
    seen = recorded(lambda: phase.step(run, state, 0))
    assert {"convolution", "convolution_backward"} <= seen
    assert not seen & DO_NOT_REPEAT


@pytest.mark.parametrize("where", ["private", "warmup"])
def test_an_operation_that_does_not_repeat_ends_in_one_line_before_anything_is_charged(
    attending, flags, monkeypatch, where
):
    run, state = attending

    def with_put(*given: Any) -> Tensor:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # raises on a CPU too
        return edm_loss(*given)

    monkeypatch.setattr({"private": private, "warmup": warmup}[where], "edm_loss", with_put)
    repeat_to_the_bit()
    with pytest.raises(DryStepError, match=rf"{where}: .*put_.*deterministic.*compute\.device") as caught:
        dry_step(run.config, one_process(), state, PHASE_CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_sum_with_attention_over_more_than_384_tokens_is_the_same_twelve_times(flags, bf16):
    repeat_to_the_bit()
    size, units, draws = 24, 8, 2
    torch.manual_seed(0)
    net = build_unet((32, 64), size, 1, 10, True, blocks=1, attention=(24, 12)).cuda()
    denoiser = Denoiser(net)
    one = noise_batch(size, units, draws)

    def losses(b: UnitBatch) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            return edm_loss(denoiser, b.images, b.labels, b.level.exp(), b.noise).view(units, draws).mean(1)

    engine = planned_engine(net, units, draws, dtype=torch.bfloat16 if bf16 else torch.float32)
    sums = []
    for _ in range(12):
        total = torch.zeros(engine.total, dtype=torch.int64, device="cuda")
        Microbatch(engine, losses, 0.1, total, capture=False).add(one)
        sums.append(total)
    assert sums[0].any()
    assert [place for place, total in enumerate(sums) if not torch.equal(total, sums[0])] == []


def noise_batch(size: int, units: int, draws: int) -> UnitBatch:
    """A microbatch of noise, on the GPU."""
    shape = (units * draws, 1, size, size)
    made = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(shape, generator=made).cuda() for _ in range(2))
    level, labels = torch.randn(shape[0], generator=made).cuda(), torch.arange(shape[0]).cuda() % 10
    return UnitBatch(images, labels, level, noise, torch.ones(units, dtype=torch.bool, device="cuda"))
