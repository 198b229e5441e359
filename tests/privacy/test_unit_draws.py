"""A unit's draws are Philox under a key, a function of step, unit and draw alone, and of the right distribution."""

import math

import pytest
import torch

from curriculumdp.privacy.streams import normals, philox, uniforms, unit_words

KEY = bytes(range(100, 132))

# kat_vectors of the Random123 library: counter, key, result.
RANDOM123 = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_philox_gives_the_published_words(counter, key, expected):
    out = torch.empty((1, 4), dtype=torch.int64)
    k0, k1 = (int(word, 16) for word in key.split())
    philox([torch.tensor([int(word, 16)]) for word in counter.split()], (k0, k1), out)
    assert out.tolist() == [[int(word, 16) for word in expected.split()]]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """The same function in Python's unbounded integers (Salmon et al. 2011, §3)."""
    for _ in range(10):
        p, q = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        mask = 0xFFFFFFFF
        counter = [q >> 32 ^ counter[1] ^ key[0], q & mask, p >> 32 ^ counter[3] ^ key[1], p & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


def test_a_units_words_are_philox_of_block_draw_unit_and_step():
    units = torch.tensor([0, 5, 2**32 - 1, 1437])
    words = unit_words(KEY, 2**32 - 2, units, 3, 10)
    assert words.shape == (4, 3, 10)
    key = [int.from_bytes(KEY[:4], "little"), int.from_bytes(KEY[4:8], "little")]
    for row, unit in enumerate(units.tolist()):
        for draw in range(3):
            blocks = [scalar_philox([block, draw, unit, 2**32 - 2], key) for block in range(3)]
            assert words[row, draw].tolist() == [word for block in blocks for word in block][:10]


def test_a_units_words_depend_on_nothing_but_key_step_unit_and_draw():
    units = torch.randperm(5000, generator=torch.Generator().manual_seed(1))[:700]
    whole = unit_words(KEY, 9, units, 4, 70)
    assert torch.equal(unit_words(KEY, 9, units.flip(0), 4, 70).flip(0), whole)
    assert torch.equal(unit_words(KEY, 9, units[333:334], 4, 70)[0], whole[333])
    assert torch.equal(unit_words(KEY, 9, units, 2, 33), whole[:, :2, :33])
    assert not torch.equal(unit_words(KEY, 10, units, 4, 70), whole)
    assert not torch.equal(unit_words(KEY[::-1], 9, units, 4, 70), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_units_words_are_the_same_on_a_gpu():
    units = torch.arange(0, 3000, 7)
    words = unit_words(KEY, 2**31 + 5, units, 4, 70)
    on_gpu = unit_words(KEY, 2**31 + 5, units.cuda(), 4, 70)
    assert torch.equal(on_gpu.cpu(), words)
    torch.testing.assert_close(normals(on_gpu).cpu(), normals(words), rtol=1e-6, atol=1e-6)


def test_padding_and_empty_batches_have_a_shape_like_any_other():
    assert unit_words(KEY, 0, torch.zeros(0, dtype=torch.int64), 3, 8).shape == (0, 3, 8)
    assert unit_words(KEY, 0, torch.tensor([-1, 2]), 3, 8).min() >= 0
    assert unit_words(KEY, 0, torch.tensor([2]), 3, 0).shape == (1, 3, 0)


@pytest.mark.parametrize("step", [-1, 2**32])
def test_a_step_that_does_not_fit_the_counter_is_refused(step):
    with pytest.raises(ValueError, match="step"):
        unit_words(KEY, step, torch.tensor([0]), 1, 4)


def test_no_two_words_of_units_draws_and_steps_are_one():
    words = torch.cat([unit_words(KEY, step, torch.arange(50), 4, 64).reshape(-1, 4) for step in range(5)])
    assert len(torch.unique(words, dim=0)) == len(words)
    assert int(words.min()) >= 0
    assert int(words.max()) < 2**32


def test_unit_draws_are_uniform_and_normal_and_uncorrelated():
    words = unit_words(KEY, 3, torch.arange(400), 8, 128)
    count = words.numel()
    u, z = uniforms(words).flatten(), normals(words).double()
    assert abs(float(u.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / count)
    assert abs(float(u.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / count)
    assert abs(float(z.mean())) < 4 / math.sqrt(count)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / count)
    for neighbour in (z[1:] * z[:-1], z[:, 1:] * z[:, :-1], z[..., 1:] * z[..., :-1]):
        assert abs(float(neighbour.mean())) < 4 / math.sqrt(neighbour.numel())


def test_extreme_words_give_finite_draws_inside_the_open_interval():
    words = torch.tensor([[0, 0, 2**32 - 1, 0, 0, 2**31]])
    assert float(uniforms(words).min()) > 0
    assert float(uniforms(words).max()) < 1
    z = normals(words)
    assert z.dtype == torch.float32
    assert float(z[0, 0]) == pytest.approx(math.sqrt(2 * 33 * math.log(2)), rel=1e-6)
    assert float(z[0, 4]) == pytest.approx(-math.sqrt(2 * 33 * math.log(2)), rel=1e-6)
    assert abs(float(z[0, 2])) < 3e-5
    with pytest.raises(ValueError, match="pairs"):
        normals(words[:, :3])
