"""The keystream is ChaCha20's, to the bit."""

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dpkernels.chacha import MAX_BLOCKS, keystream, normals_reference

# RFC 8439 §2.3.2 uses another nonce; A.1 vectors 1, 2 and 5 have the zero nonce that every key here has.
ZERO_KEY_BLOCK_0 = (
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc"
    "387b669b2ee6586"
)
ZERO_KEY_BLOCK_1 = (
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ac"
    "e10a1f4b794d6f"
)


def as_bytes(blocks: torch.Tensor) -> bytes:
    return blocks.numpy().astype("<i4").tobytes()


def library(key: bytes, blocks: int, first: int) -> bytes:
    nonce = first.to_bytes(4, "little") + bytes(12)
    return Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64 * blocks))


@pytest.mark.parametrize("path", ["torch", "triton"])
class TestKeystream:
    @pytest.fixture(autouse=True)
    def _path(self, path: str, request: pytest.FixtureRequest) -> None:
        if path == "triton":
            request.getfixturevalue("interpreter")

    def test_equals_the_vectors_of_rfc_8439_appendix_a1(self) -> None:
        assert as_bytes(keystream(bytes(32), 2)).hex() == ZERO_KEY_BLOCK_0 + ZERO_KEY_BLOCK_1

    @pytest.mark.parametrize("first", [0, 2**31 - 100, 2**32 - 1025])
    def test_equals_the_cryptography_package_over_64_kb(self, first: int) -> None:
        key = bytes(range(7, 39))
        assert as_bytes(keystream(key, 1025, first)) == library(key, 1025, first)

    def test_refuses_blocks_that_the_counter_would_repeat(self) -> None:
        with pytest.raises(ValueError, match="32 bits"):
            keystream(bytes(32), 2, MAX_BLOCKS - 1)

    def test_refuses_a_key_of_another_length(self) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            keystream(bytes(16), 1)


def test_normals_reach_beyond_six_sigma_and_never_overflow() -> None:
    """A radius word of 0 gives the largest normal, √(2 ln 2⁶⁵) = 9.49; 32-bit uniforms would stop at 6.8."""
    block = torch.zeros(1, 16, dtype=torch.int32)
    block[0, 4:6] = -1  # the second pair: the largest radius word, the smallest radius
    normals = normals_reference(block)[0]
    assert normals[0] == pytest.approx(9.4927, abs=1e-3)
    assert abs(normals[2]) < 1e-9
    assert torch.isfinite(normals).all()


def test_normals_have_the_moments_and_the_independence_of_normals() -> None:
    z = normals_reference(keystream(bytes(range(32)), 50_000)).numpy()
    error = 5 / np.sqrt(z.size)
    assert abs(z.mean()) < error
    assert abs(z.var() - 1) < 2 * error
    assert abs((z**4).mean() - 3) < 10 * error
    correlations = np.corrcoef(z.T) - np.eye(8)
    assert np.abs(correlations).max() < 5 / np.sqrt(len(z))
