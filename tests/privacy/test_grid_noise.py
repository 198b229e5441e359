"""P2 for the grid: noise has its size, is added once, and fits an integer sum exactly."""

import math

import numpy as np
import pytest
import torch

from curriculumdp.privacy.grid_noise import (
    NoiseError,
    add_noise,
    check_capacity,
    from_grid,
)
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.privacy.streams import gaussian
from dpkernels.grid import AIM, GRID, GRID_BITS

SECRET = RunSecret.from_bytes(bytes(range(50, 82)))
KEY = SECRET.key("noise", entry="00")


def test_the_grid_is_what_the_design_says():
    assert GRID_BITS == 36
    assert GRID == 2.0**36
    assert AIM == 1 - 2.0**-12


@pytest.mark.parametrize("sigma", [0.5, 1.84, 12.0, 1000.0])
def test_p2_the_noise_on_an_empty_sum_has_variance_sigma_squared_c_squared(sigma):
    count = 2**19
    noise = from_grid(add_noise(torch.zeros(count, dtype=torch.int64), sigma, KEY), 0.7)
    assert abs(float(noise.mean())) < 4 * sigma * 0.7 / math.sqrt(count)
    assert abs(float(noise.var()) / (sigma * 0.7) ** 2 - 1) < 4 * math.sqrt(2 / count)


def test_p2_noise_of_steps_and_phases_is_uncorrelated():
    count, zero = 2**17, torch.zeros(2**17, dtype=torch.int64)
    keys = [SECRET.key("noise", entry=f"{number:02x}") for number in range(12)]
    noises = torch.stack([from_grid(add_noise(zero, 2.0, key), 1.0) for key in keys])
    correlation = noises @ noises.T / (4 * count) - torch.eye(len(keys), dtype=torch.float64)
    assert float(correlation.fill_diagonal_(0).abs().max()) < 4.5 / math.sqrt(count)
    for shift in (1, 2, 8):
        shifted = (noises[:, shift:] * noises[:, :-shift]).mean(1) / 4
        assert float(shifted.abs().max()) < 4.5 / math.sqrt(count)


def test_p2_the_noise_is_added_once_whatever_the_sum():
    zero = torch.zeros(1000, dtype=torch.int64)
    total = torch.arange(-500, 500) * 2**35
    noise = add_noise(zero, 3.0, KEY)
    assert torch.equal(add_noise(total, 3.0, KEY), total + noise)
    assert noise.tolist() == np.rint(gaussian(KEY, 1000) * (3.0 * 2**36)).astype(np.int64).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_noise_on_a_gpus_sum_is_the_same_to_the_bit():
    total = torch.arange(-500, 500) * 2**35
    assert torch.equal(add_noise(total.cuda(), 3.0, KEY).cpu(), add_noise(total, 3.0, KEY))


def test_the_sum_given_is_not_changed():
    total = torch.arange(10)
    add_noise(total, 1.0, KEY)
    assert torch.equal(total, torch.arange(10))


def test_noise_reaches_all_residues_of_the_grid():
    noise = add_noise(torch.zeros(2**14, dtype=torch.int64), 100.0, KEY)
    low_bits = torch.bincount(noise & 15, minlength=16)
    assert float(((low_bits - 1024.0) ** 2 / 1024).sum()) < 37.7  # chi-square of 15 degrees, 0.1 %


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 20_000.0])
def test_a_noise_multiplier_the_grid_cannot_carry_is_refused(sigma):
    with pytest.raises(NoiseError, match="noise multiplier"):
        add_noise(torch.zeros(2, dtype=torch.int64), sigma, KEY)
    with pytest.raises(NoiseError, match="noise multiplier"):
        check_capacity(10, sigma)


@pytest.mark.parametrize(
    "total", [torch.zeros(3), torch.zeros(3, dtype=torch.int32), torch.zeros(1, 3).long()]
)
def test_noise_is_added_to_one_flat_integer_sum_only(total):
    with pytest.raises(TypeError, match="flat int64"):
        add_noise(total, 1.0, KEY)


def test_the_capacity_is_exact_at_its_edge():
    noise = math.ceil(2.0 * GRID * 9.5)
    most = (2**63 - noise - 1) // 2**36
    check_capacity(most, 2.0)
    assert most * 2**36 + noise < 2**63 <= (most + 1) * 2**36 + noise
    with pytest.raises(NoiseError, match=f"at most {most} units") as raised:
        check_capacity(most + 1, 2.0)
    assert "\n" not in str(raised.value)


def test_the_largest_noise_is_exact_in_float64():
    most = math.nextafter(2.0**53 / GRID / 9.5, 0.0)
    check_capacity(1, most)
    assert most * GRID * math.sqrt(2 * 65 * math.log(2)) < 2**53
