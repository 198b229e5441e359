"""A run's secret shows nowhere, lies in one file that its owner alone reads, and gives each purpose its own key."""

import copy
import hashlib
import hmac
import json
import math
import os
import pickle
import stat
import traceback

import pytest

from curriculumdp.privacy.secret import RunSecret, SecretError, erase_private

RAW = bytes(range(32))


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
