"""Malformed configs, certificates and keys end in one clear line; nothing read can crash the check."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curriculumdp.release.signature import SignatureError, load_signer, sign
from curriculumdp.release.verify import verify_release
from tests.support.forged import certify_again
from tests.support.tiny_release import write_keys

BOMB = "a: &a [x]\n" + "".join(
    f"b{i}: &b{i} [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n".replace("*a", f"*b{i - 1}" if i else "*a")
    for i in range(12)
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "data: 3",
        "{",
        "\x00",
        "data: {units: .nan}",
        "[" * 5000,
        BOMB + "data: {units: *b11, classes: 3, channels: *b11, size: 8}\nprivacy: {delta: 1, epsilon: 1}",
    ],
)
def test_hostile_configs_end_in_lines(release: Path, text: str) -> None:
    (release / "training_config.yaml").write_text(text)
    certify_again(release)
    problems = verify_release(release)
    assert any("training_config.yaml" in line for line in problems)
    assert max(map(len, problems)) < 500


def spoiled(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def rewritten(content: bytes) -> bytes:
        whole = json.loads(content)
        change(whole)
        return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()

    return rewritten


def put(path: str, value: object) -> Callable[[bytes], bytes]:
    """The certificate with one value replaced."""
    *parents, last = path.split(".")

    def change(whole: dict[str, Any]) -> None:
        place: Any = whole
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = value

    return spoiled(change)


def drop(key: str) -> Callable[[bytes], bytes]:
    return spoiled(lambda whole: whole.pop(key))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"null",
        lambda _: b"[]",
        lambda _: b"\xff\xfe",
        lambda _: b"[" * 100_000,
        lambda _: b'{"format": ' + b"9" * 10_000 + b"}",
        lambda content: content + b" " * 2_000_000,
        lambda content: content + b"\n",
        lambda content: content[:-40],
        lambda content: content.replace(b'"delta"', b'"delta": 1e-9,\n    "delta"'),
        lambda content: content.replace(b"6.0", b"NaN"),
        lambda content: content.replace(b"6.0", b"Infinity"),
        lambda content: content.replace(b"6.0", b"6.00"),
        lambda content: content.replace(b"one image", b"one \\u001b[31mimage"),
        lambda content: content.replace(b"one image", b"one \\ud800 image"),
        drop("guarantee"),
        drop("statement"),
        drop("files"),
        put("format", 3),
        put("more", 1),
        put("statement.adjacency", "replace-one"),
        put("statement.guarantee", "perfect"),
        put("guarantee.epsilon", "6"),
        put("guarantee.epsilon", -1),
        put("guarantee.epsilon", True),
        put("guarantee.epsilon", 10**400),
        put("guarantee.delta", 0.0),
        put("guarantee.delta", None),
        put("guarantee.stopped", "whenever"),
        put("guarantee.private_metrics_shown", "no"),
        put("guarantee.events", {}),
        put("guarantee.events.0.count", 1.5),
        put("guarantee.events.0.count", 10**30),
        put("guarantee.events.0.sample_rate", 0.0),
        put("guarantee.events.0.mechanism", "laplace"),
        put("guarantee.public.image_shape", [1, 8]),
        put("guarantee.unit", "x" * 10_000),
        put("accounting.opacus_prv", [1.0]),
        put("accounting.opacus_prv", None),
        put("files", {"README.md": "short"}),
        put("versions.\x1b[31m", "x"),
    ],
)  # fmt: skip
def test_malformed_certificates_end_in_one_clear_line(release: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = release / "privacy.json"
    path.write_bytes(spoil(path.read_bytes()))
    problems = verify_release(release)
    assert problems
    for line in problems:
        assert line.isprintable(), line
        assert len(line) < 500


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    assert verify_release(tmp_path / "nothing") == [f"{tmp_path / 'nothing'} is not a folder"]
    assert "privacy.json is missing" in verify_release(tmp_path)[0]
    (tmp_path / "privacy.json").mkdir()
    assert verify_release(tmp_path)


def test_unusable_signer_keys_are_named(release: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "ours")
    for key in (private, tmp_path / "missing.pub", release / "README.md"):
        with pytest.raises(SignatureError, match=key.name) as raised:
            verify_release(release, key)
        assert "\n" not in str(raised.value)


def test_a_key_file_that_cannot_be_read_is_told_for_what_it_is(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ours")
    (tmp_path / "empty.pem").write_bytes(b"\n")
    (tmp_path / "folder").mkdir()
    told = {"missing": "No such file", "folder": "Is a directory", "empty.pem": "the file is empty"}
    for name, words in told.items():
        for use in (lambda key: sign(b"", key), load_signer):
            with pytest.raises(SignatureError, match=words) as raised:
                use(tmp_path / name)
            assert "PEM: " not in str(raised.value)
            assert str(raised.value).startswith(str(tmp_path / name))
    with pytest.raises(SignatureError, match="not a private key in PEM"):
        sign(b"", public)
    with pytest.raises(SignatureError, match="not a public key in PEM"):
        load_signer(private)


def test_a_key_file_without_leave_to_read_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    for use in (lambda key: sign(b"", key), load_signer):
        with pytest.raises(SignatureError, match=r"key\.pem: Permission denied"):
            use(tmp_path / "key.pem")
