"""Keys, keystreams and normals are the published functions, keep their secret, depend on their place."""

import copy
import hashlib
import hmac
import json
import math
import os
import pickle
import stat
import traceback

import numpy as np
import pytest
import torch

from curriculumdp.privacy.secret import RunSecret, SecretError, erase_private
from curriculumdp.privacy.streams import gaussian, keystream, normals, philox, uniforms, unit_words

RAW = bytes(range(32))
KEY = bytes(range(100, 132))


def hidden_forms() -> list[str]:
    """The ways in which 32 secret bytes could show in a text."""
    return [RAW.hex(), str(RAW), repr(RAW)[2:-1], str(list(RAW))[1:-1], str(bytearray(RAW))]


def test_keys_are_hkdf_sha256_of_purpose_and_context():
    info = json.dumps(
        ["curriculumdp 1", "rows", {"phase": "private", "step": 3}], separators=(",", ":")
    ).encode()
    extracted = hmac.new(bytes(32), RAW, hashlib.sha256).digest()
    expected = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    assert RunSecret.from_bytes(RAW).key("rows", step=3, phase="private") == expected


def test_every_purpose_and_place_has_its_own_key():
    secret = RunSecret.from_bytes(RAW)
    keys = [
        secret.key("rows", incarnation=i, phase=phase, step=step)
        for i in range(3)
        for phase in ("central", "private")
        for step in range(20)
    ]
    keys += [secret.key("noise", entry="ab"), secret.key("noise", entry="abc"), secret.key("noise")]
    keys += [
        secret.key("a", b="c"),
        secret.key("a", b=1),
        secret.key("a", c="b"),
        bytes.fromhex(secret.identity()),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys[:-1]} == {32}


def test_a_context_that_is_no_plain_value_is_refused():
    with pytest.raises(TypeError):
        RunSecret.from_bytes(RAW).key("noise", entry=b"bytes")
    with pytest.raises(ValueError, match="JSON"):
        RunSecret.from_bytes(RAW).key("noise", rate=math.nan)


def test_new_secrets_differ():
    assert RunSecret.create().identity() != RunSecret.create().identity()


def test_the_secret_shows_in_no_text_pickle_or_copy():
    secret = RunSecret.from_bytes(RAW)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        str([secret]),
        str(vars(type(secret))),
    ]
    assert not hasattr(secret, "__dict__")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError) as raised:
            attempt(secret)
        told = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
        shown.append("".join(told.format()))
    for form in hidden_forms():
        assert not any(form in text for text in shown)


def test_a_traceback_with_locals_from_inside_does_not_tell_the_secret():
    with pytest.raises(TypeError) as raised:
        RunSecret.from_bytes(RAW).key("noise", entry=[1])
    told = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert "RunSecret(hidden)" in told
    assert not any(form in told for form in hidden_forms())


def test_a_secret_that_cannot_be_saved_or_loaded_does_not_show_in_the_traceback(tmp_path):
    blocked, long = tmp_path / "blocked", tmp_path / "long"
    blocked.write_bytes(b"")
    long.write_bytes(RAW + b"\n")
    long.chmod(0o600)
    for attempt in (lambda: RunSecret.from_bytes(RAW).save(blocked), lambda: RunSecret.load(long)):
        with pytest.raises(SecretError) as raised:
            attempt()
        told = "".join(
            traceback.TracebackException.from_exception(raised.value, capture_locals=True).format()
        )
        assert not any(form in told for form in hidden_forms())


def test_a_saved_secret_is_for_its_owner_alone_and_comes_back(tmp_path):
    path = tmp_path / "secret"
    before = os.umask(0)
    try:
        RunSecret.from_bytes(RAW).save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert RunSecret.load(path).identity() == RunSecret.from_bytes(RAW).identity()


def test_a_saved_secret_is_never_overwritten(tmp_path):
    path = tmp_path / "secret"
    RunSecret.from_bytes(RAW).save(path)
    with pytest.raises(SecretError, match="File exists"):
        RunSecret.create().save(path)
    assert path.read_bytes() == RAW


def test_the_file_and_its_folder_are_synced(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    RunSecret.create().save(tmp_path / "secret")
    assert synced == [str(tmp_path / "secret"), str(tmp_path)]


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (RAW, 0o644, "chmod 600"),
        (RAW, 0o660, "chmod 600"),
        (RAW[:-1], 0o600, "32 bytes, not 31"),
        (b"", 0o600, "32 bytes, not 0"),
    ],
)
def test_a_secret_that_is_damaged_or_open_to_others_is_refused(tmp_path, content, mode, reason):
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(SecretError, match=reason) as raised:
        RunSecret.load(path)
    assert "\n" not in str(raised.value)


def test_a_missing_secret_is_named(tmp_path):
    with pytest.raises(SecretError, match="nowhere"):
        RunSecret.load(tmp_path / "nowhere")


def test_an_erased_secret_is_overwritten_and_gone_from_disk(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    secret = RunSecret.from_bytes(RAW)
    secret.save(path)
    overwritten = []
    real = os.unlink
    monkeypatch.setattr(
        os, "unlink", lambda p, *a, **k: (overwritten.append(path.read_bytes()), real(p, *a, **k))
    )
    erase_private(path)
    assert overwritten == [bytes(32)]
    assert not path.exists()


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
