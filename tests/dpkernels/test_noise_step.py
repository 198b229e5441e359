"""The end of a step: the noise is the run's own, the update is Adam's, and the sum is gone."""

import math
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from curriculumdp.privacy.grid_noise import add_noise, from_grid
from curriculumdp.privacy.streams import gaussian
from dpkernels.chacha import box_muller, chacha_normals, key_words
from dpkernels.grid import GRID, rint
from dpkernels.noise_step import adam_step, gaussian_reference, noise_step

KEY = bytes(range(32))
COUNT = 4099  # neither whole blocks of eight nor whole programs


def buffers(count: int = COUNT) -> SimpleNamespace:
    torch.manual_seed(1)
    names = ("weights", "exp_avg", "exp_avg_sq", "ema")
    return SimpleNamespace(**{name: torch.rand(count) for name in names})


def random_sum(count: int = COUNT) -> Tensor:
    torch.manual_seed(2)
    return torch.randint(-(2**36), 2**36, (count,))


def test_normals_are_those_of_the_cpu_path_up_to_the_last_bit_of_libm() -> None:
    ours, cpu = gaussian_reference(key_words(KEY), COUNT), torch.from_numpy(gaussian(KEY, COUNT))
    assert (ours - cpu).abs().max() < 4e-15


@triton.jit
def _noise_kernel(key: tl.tensor, scale: tl.tensor, out: tl.tensor, BLOCKS: tl.constexpr) -> None:
    """The noise that `_noise_step_kernel` adds, by the same expression."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    place = block.to(tl.int64)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out + place, rint(chacha_normals(key, block.to(tl.uint32)) * tl.load(scale)).to(tl.int64))


def integer_noise(key: bytes, noise_multiplier: float, blocks: int, where: str) -> Tensor:
    """What the kernel adds to a sum of zeros, int64 [8·blocks], on the CPU."""
    out = torch.zeros(blocks * 8, dtype=torch.int64, device=where)
    scale = torch.tensor([noise_multiplier * GRID], dtype=torch.float64, device=where)
    _noise_kernel[(blocks // 64,)](key_words(key, where), scale, out, 64, enable_fp_fusion=False)
    return out.cpu()


def check_integer_noise(where: str) -> None:
    """float64 functions of two libraries differ by their last bit: a step of the grid, now and then."""
    for multiplier in (0.6, 12.0):
        ours = integer_noise(KEY, multiplier, 512, where)
        expected = add_noise(torch.zeros(4096, dtype=torch.int64), multiplier, KEY)
        assert (ours - expected).abs().max() <= 1
        assert (ours != expected).double().mean() < 0.01


@pytest.mark.usefixtures("interpreter")
def test_the_fused_noise_is_add_noise_to_within_one_step_of_the_grid() -> None:
    check_integer_noise("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_fused_noise_is_add_noise_to_within_one_step_of_the_grid_on_a_gpu() -> None:
    check_integer_noise("cuda")


@pytest.mark.usefixtures("interpreter")
def test_the_whole_step_adds_that_noise() -> None:
    """With β1 = 0.9, no earlier moments and scale 1, exp_avg gives the noisy sum back, in fp32."""
    total, state = torch.zeros(COUNT, dtype=torch.int64), buffers()
    state.exp_avg.zero_()
    expected = from_grid(add_noise(total, 2.0, KEY), 1.0)
    noise_step(total, KEY, 2.0, 1.0, 1.0, state, 0, 0.0, 0.5)
    torch.testing.assert_close(state.exp_avg.double() / (1 - 0.9), expected, rtol=1e-6, atol=2.0**-36)


@pytest.mark.usefixtures("interpreter")
def test_the_kernel_equals_noise_then_scale_then_adam_then_ema() -> None:
    total, state, expected = random_sum(), buffers(), buffers()
    gradient = from_grid(add_noise(total, 1.5, KEY), 0.7) / 100
    adam_step(gradient.float(), expected, 3, 1e-2, 0.99)
    noise_step(total, KEY, 1.5, 0.7, 100.0, state, 3, 1e-2, 0.99)
    for name, buffer in vars(expected).items():
        torch.testing.assert_close(getattr(state, name), buffer, rtol=1e-6, atol=1e-7)
    assert not total.any()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_kernel_averages_by_any_decay(decay: float) -> None:
    """A power-function average begins with a decay of 0, which forgets what was there."""
    state = buffers()
    before = state.ema.clone()
    noise_step(random_sum(), KEY, 1.5, 0.7, 100.0, state, 0, 1e-2, decay)
    expected = before * decay + state.weights * (1 - decay)
    torch.testing.assert_close(state.ema, expected, rtol=1e-6, atol=1e-6)


def test_without_a_gpu_the_step_is_the_same_in_torch() -> None:
    total, state, expected = random_sum(), buffers(), buffers()
    gradient = from_grid(add_noise(total, 1.5, KEY), 0.7) / 100
    adam_step(gradient.float(), expected, 3, 1e-2, 0.99)
    noise_step(total, KEY, 1.5, 0.7, 100.0, state, 3, 1e-2, 0.99)
    for name, buffer in vars(expected).items():
        torch.testing.assert_close(getattr(state, name), buffer, rtol=1e-6, atol=1e-7)
    assert not total.any()


def test_adam_step_is_torchs_adam() -> None:
    state = buffers()
    state.exp_avg.zero_()
    state.exp_avg_sq.zero_()
    parameter = torch.nn.Parameter(state.weights.clone())
    optimizer = torch.optim.Adam([parameter], lr=3e-3)
    for step in range(5):
        gradient = torch.randn(COUNT, generator=torch.Generator().manual_seed(step))
        parameter.grad = gradient.clone()
        optimizer.step()
        adam_step(gradient, state, step, 3e-3, 0.9)
    torch.testing.assert_close(state.weights, parameter.detach(), rtol=1e-6, atol=1e-7)


def test_the_ema_follows_the_new_weights() -> None:
    state = buffers()
    before = state.ema.clone()
    adam_step(torch.randn(COUNT), state, 0, 1e-2, 0.9)
    torch.testing.assert_close(state.ema, 0.9 * before + 0.1 * state.weights)


def test_another_key_or_more_noise_changes_the_update() -> None:
    weights = []
    for key, multiplier in ((KEY, 1.0), (KEY[::-1], 1.0), (KEY, 2.0)):
        state = buffers()
        noise_step(random_sum(), key, multiplier, 1.0, 1.0, state, 0, 1e-2, 0.9)
        weights.append(state.exp_avg)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@triton.jit
def _pairs_kernel(words: tl.tensor, out: tl.tensor, N: tl.constexpr) -> None:
    place = tl.arange(0, N)
    a = tl.load(words + place * 4).to(tl.uint32, bitcast=True)
    b = tl.load(words + place * 4 + 1).to(tl.uint32, bitcast=True)
    c = tl.load(words + place * 4 + 2).to(tl.uint32, bitcast=True)
    d = tl.load(words + place * 4 + 3).to(tl.uint32, bitcast=True)
    z0, z1 = box_muller(a, b, c, d)
    tl.store(out + place * 2, z0)
    tl.store(out + place * 2 + 1, z1)


@pytest.mark.usefixtures("interpreter")
def test_the_kernels_tail_reaches_the_largest_normal_that_64_bits_allow() -> None:
    words = torch.zeros(4, 4, dtype=torch.int32)
    words[1, 0] = 1  # u = 1.5/2⁶⁴
    words[2, :2] = -1  # u = 1: radius 0
    words[3, 1] = 1  # u = 2³²/2⁶⁴: where 32-bit uniforms end
    out = torch.zeros(8, dtype=torch.float64)
    _pairs_kernel[(1,)](words, out, 4)
    expected = [math.sqrt(-2 * math.log((n + 0.5) / 2**64)) for n in (0, 1, 2**64 - 1, 2**32)]
    torch.testing.assert_close(out[::2], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-8)
    assert out[0] > 9.49
    assert out[6] > 6.6


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.nan, math.inf, 2.0**14])
def test_no_noise_or_more_than_the_grid_holds_is_refused(multiplier: float) -> None:
    state = buffers()
    before = state.weights.clone()
    with pytest.raises(ValueError, match="noise multiplier"):
        noise_step(random_sum(), KEY, multiplier, 1.0, 1.0, state, 0, 1e-2, 0.9)
    assert torch.equal(state.weights, before)


def test_a_sum_that_is_not_exact_is_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        noise_step(random_sum().double(), KEY, 1.0, 1.0, 1.0, buffers(), 0, 1e-2, 0.9)
