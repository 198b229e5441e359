"""P1 and P2 for the grid: no unit moves an integer sum by more than C; noise has its size, added once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculumdp.privacy.grid_noise import (
    AIM,
    GRID,
    GRID_BITS,
    NoiseError,
    add_noise,
    check_capacity,
    clip_and_sum,
    from_grid,
    round_to_grid,
)
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.privacy.streams import gaussian

SECRET = RunSecret.from_bytes(bytes(range(50, 82)))
KEY = SECRET.key("noise", entry="00")
HOSTILE = [0.0, 1e-320, 1.0, -1.0, 1e150, -1e308, math.inf, -math.inf, math.nan]


def squared_length(vector: torch.Tensor) -> int:
    """Σn² of an int64 vector, in Python's exact integers."""
    return sum(n * n for n in vector.tolist())


def random_vectors(rows: int, width: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    return torch.randn(rows, width, dtype=torch.float64, generator=generator) * scale


def test_the_grid_is_what_the_design_says():
    assert GRID_BITS == 36
    assert GRID == 2.0**36
    assert AIM == 1 - 2.0**-12


@pytest.mark.parametrize("width", [1, 2, 1000, 100_000])
@pytest.mark.parametrize("clip_norm", [1.0, 0.3, 7.5, 1e-20, 1e20])
def test_a_clipped_unit_never_exceeds_the_sensitivity(width, clip_norm):
    vectors = random_vectors(3, width, 100 * clip_norm)
    present = torch.ones(1, dtype=torch.bool)
    for vector in vectors:
        rounded = clip_and_sum(vector[None], clip_norm, present)
        assert squared_length(rounded) <= 2**72
        assert math.sqrt(squared_length(rounded)) >= GRID * (AIM - 1e-6)


def test_rounding_up_in_every_coordinate_stays_within_the_sensitivity():
    width = 2**18
    value = AIM / math.sqrt(width)
    worst = math.floor(value * GRID) + 0.5 + 2**-8
    vector = torch.full((1, width), worst / GRID, dtype=torch.float64)
    assert squared_length(round_to_grid(vector, 1.0)[0]) <= 2**72


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hostile=st.lists(
        st.sampled_from(HOSTILE) | st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4
    ),
    clip_norm=st.sampled_from([1.0, 0.01, 3.7, 1e10]),
    place=st.integers(0, 3),
)
def test_p1_one_hostile_unit_moves_the_sum_by_at_most_c(hostile, clip_norm, place):
    others = random_vectors(3, 4, clip_norm)
    row = torch.tensor([hostile], dtype=torch.float64)
    without = clip_and_sum(others, clip_norm, torch.ones(3, dtype=torch.bool))
    together = torch.cat([others[:place], row, others[place:]])
    with_it = clip_and_sum(together, clip_norm, torch.ones(4, dtype=torch.bool))
    assert squared_length(with_it - without) <= 2**72


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e200])
def test_a_unit_without_a_finite_norm_contributes_nothing(bad):
    vectors = random_vectors(4, 6)
    clean = vectors.clone()
    vectors[2, 3] = bad
    present = torch.ones(4, dtype=torch.bool)
    kept = torch.tensor([True, True, False, True])
    assert torch.equal(clip_and_sum(vectors, 1.0, present), clip_and_sum(clean, 1.0, kept))


def test_an_absent_unit_contributes_exactly_nothing_whatever_it_holds():
    vectors = random_vectors(4, 6)
    vectors[1] = math.nan
    vectors[3] = 5.0
    present = torch.tensor([True, False, True, False])
    assert torch.equal(
        clip_and_sum(vectors, 1.0, present), clip_and_sum(vectors[[0, 2]], 1.0, present[[0, 2]])
    )
    assert clip_and_sum(vectors, 1.0, torch.zeros(4, dtype=torch.bool)).tolist() == [0] * 6


def test_a_small_unit_is_kept_as_it_is_and_a_large_one_scaled_to_the_aim():
    small, large = random_vectors(1, 50, 0.01), random_vectors(1, 50, 9.0)
    present = torch.ones(1, dtype=torch.bool)
    assert torch.equal(clip_and_sum(small, 1.0, present), round_to_grid(small, 1.0)[0])
    clipped = from_grid(clip_and_sum(large, 1.0, present), 1.0)
    torch.testing.assert_close(clipped, large[0] / large.norm() * AIM, rtol=0, atol=2**-36)


def test_the_sum_is_one_to_the_bit_in_any_order_and_packing():
    vectors = random_vectors(60, 40, 0.3)
    present = torch.ones(60, dtype=torch.bool)
    whole = clip_and_sum(vectors, 1.0, present)
    assert torch.equal(clip_and_sum(vectors.flip(0), 1.0, present), whole)
    for size in (1, 7, 60):
        parts = [clip_and_sum(part, 1.0, present[: len(part)]) for part in vectors.split(size)]
        assert torch.equal(torch.stack(parts).sum(0), whole)


def test_an_empty_sample_sums_to_zero():
    total = clip_and_sum(torch.zeros(0, 5, dtype=torch.float64), 1.0, torch.zeros(0, dtype=torch.bool))
    assert total.dtype == torch.int64
    assert total.tolist() == [0] * 5


def test_vectors_below_float64_are_refused():
    with pytest.raises(TypeError, match="float64"):
        clip_and_sum(torch.zeros(1, 5), 1.0, torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_a_clip_norm_the_grid_cannot_carry_is_refused(clip_norm):
    with pytest.raises(NoiseError, match="clip norm"):
        round_to_grid(torch.zeros(1, 1, dtype=torch.float64), clip_norm)
    with pytest.raises(NoiseError, match="clip norm"):
        from_grid(torch.zeros(1, dtype=torch.int64), clip_norm)


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
    total = (random_vectors(1, 1000)[0] * GRID).to(torch.int64)
    noise = add_noise(zero, 3.0, KEY)
    assert torch.equal(add_noise(total, 3.0, KEY), total + noise)
    assert noise.tolist() == np.rint(gaussian(KEY, 1000) * (3.0 * 2**36)).astype(np.int64).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_noise_on_a_gpus_sum_is_the_same_to_the_bit():
    total = (random_vectors(1, 1000)[0] * GRID).to(torch.int64)
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
