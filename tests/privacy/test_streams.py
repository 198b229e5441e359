"""Keystreams and normals are the published functions, and never repeat."""

import math

import numpy as np
import pytest

from curriculumdp.privacy.streams import gaussian, keystream

RAW = bytes(range(32))
KEY = bytes(range(100, 132))


def quarter_round_keystream(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439's block function, written from §2.1 to §2.3: an oracle for any nonce and counter."""
    mask = 0xFFFFFFFF
    words = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    words += [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    words += [counter] + [int.from_bytes(nonce[i : i + 4], "little") for i in range(0, 12, 4)]
    x = list(words)

    def mix(a: int, b: int, c: int, d: int) -> None:
        for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & mask
            x[r] ^= x[p]
            x[r] = (x[r] << turn | x[r] >> (32 - turn)) & mask

    for _ in range(10):
        for column in range(4):
            mix(column, 4 + column, 8 + column, 12 + column)
        for diagonal in range(4):
            mix(diagonal, 4 + (diagonal + 1) % 4, 8 + (diagonal + 2) % 4, 12 + (diagonal + 3) % 4)
    return b"".join(((a + b) & mask).to_bytes(4, "little") for a, b in zip(x, words, strict=True))


RFC_8439_BLOCK = (
    "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
)
SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
RFC_8439_CIPHERTEXT = (
    "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"
    "1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
    "5af90bbf74a35be6b40b8eedf2785e42874d"
)


def test_the_oracle_is_rfc_8439_section_2_3_2():
    block = quarter_round_keystream(RAW, 1, bytes.fromhex("000000090000004a00000000"))
    assert block.hex() == RFC_8439_BLOCK


def test_the_oracle_is_rfc_8439_section_2_4_2():
    nonce = bytes.fromhex("000000000000004a00000000")
    stream = b"".join(quarter_round_keystream(RAW, block, nonce) for block in (1, 2))
    assert bytes(a ^ b for a, b in zip(SUNSCREEN, stream, strict=False)).hex() == RFC_8439_CIPHERTEXT


def test_rfc_8439_appendix_a1_with_a_zero_nonce():
    zero_key = keystream(bytes(32), 16).tobytes().hex()
    assert zero_key.startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert zero_key[128:].startswith("9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed")
    assert keystream(bytes(31) + b"\x01", 8, 1).tobytes().hex().startswith("3aeb5224ecf849929b9d828db1ced4dd")


@pytest.mark.parametrize("first", [0, 1, 77, 2**32 - 3])
def test_the_keystream_is_rfc_8439_at_any_block(first):
    expected = b"".join(quarter_round_keystream(KEY, first + i, bytes(12)) for i in range(3))
    words = keystream(KEY, 24, first)
    assert words.dtype == np.uint64
    assert words.tolist() == [int.from_bytes(expected[i : i + 8], "little") for i in range(0, 192, 8)]


@pytest.mark.parametrize("words", [0, 1, 7, 8, 9, 2**16 - 1, 2**16 + 1, 3 * 2**16])
def test_a_shorter_keystream_is_the_longer_ones_beginning(words):
    longer = keystream(KEY, 200_000)
    assert np.array_equal(keystream(KEY, words), longer[:words])
    assert np.array_equal(keystream(KEY, 50, 20_000), longer[160_000:160_050])


def test_the_keystream_refuses_to_wrap_and_repeat():
    keystream(KEY, 8, 2**32 - 1)
    for words, first in ((9, 2**32 - 1), (1, 2**32), (8 * 2**32 + 1, 0), (1, -1), (-1, 0)):
        with pytest.raises(ValueError, match=r"2\*\*32 blocks"):
            keystream(KEY, words, first)


def test_the_keystream_has_no_repeated_block():
    blocks = keystream(KEY, 8 * 50_000).reshape(-1, 8)
    other = keystream(bytes([KEY[0] ^ 1]) + KEY[1:], 8 * 50_000).reshape(-1, 8)
    assert len(np.unique(np.concatenate([blocks, other])[:, 0])) == 100_000


# Bounds below are 4 standard errors of n = 2²¹ normals: mean 1/√n, variance √(2/n), third moment √(15/n), …
COUNT = 2**21


def test_gaussian_has_the_moments_and_tails_of_a_normal():
    z = gaussian(KEY, COUNT)
    assert z.dtype == np.float64
    assert abs(z.mean()) < 4 / math.sqrt(COUNT)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / COUNT)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / COUNT)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / COUNT)
    for far in (1.0, 2.0, 3.0, 4.0, 4.75):
        expected = COUNT * math.erfc(far / math.sqrt(2))
        assert abs((np.abs(z) > far).sum() - expected) < 4 * math.sqrt(expected) + 1


def test_gaussian_is_normal_by_kolmogorov_smirnov():
    z = np.sort(gaussian(KEY, COUNT))
    normal = 0.5 * (1 + np.array([math.erf(x / math.sqrt(2)) for x in z[:: 2**7]]))
    assert np.abs(normal - np.arange(0, COUNT, 2**7) / COUNT).max() < 1.95 / math.sqrt(COUNT)


def test_gaussians_are_uncorrelated_within_and_between_keys():
    z, other = gaussian(KEY, COUNT), gaussian(KEY[::-1], COUNT)
    for lag in (1, 2, 3, 8, 2**16):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / math.sqrt(COUNT)
        assert abs((z[lag:] ** 2 * z[:-lag] ** 2).mean() - 1) < 4 * math.sqrt(8 / COUNT)
    assert abs((z * other).mean()) < 4 / math.sqrt(COUNT)


def words_at_most(_: bytes, words: int, __: int = 0) -> np.ndarray:
    """A keystream whose radius words are 0, 2⁶⁴ − 1, 2⁶³ in turn, and whose angle words are 0."""
    stream = np.zeros(words, np.uint64)
    stream[0::6], stream[2::6], stream[4::6] = 0, 2**64 - 1, 2**63
    return stream


def test_the_radius_reaches_beyond_nine_and_is_never_infinite(monkeypatch):
    monkeypatch.setattr("curriculumdp.privacy.streams.keystream", words_at_most)
    z = gaussian(KEY, 6)
    assert z[0] == pytest.approx(math.sqrt(2 * 65 * math.log(2)), rel=1e-15)
    assert z[0] > 9.49
    assert z[2] == 0
    assert z[4] == pytest.approx(math.sqrt(2 * math.log(2)), rel=1e-15)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2**16, 2**16 + 3])
def test_fewer_normals_are_the_beginning_of_more(count):
    assert np.array_equal(gaussian(KEY, count), gaussian(KEY, 2**17 + 5)[:count])
