"""Whatever is done to a release is noticed, in a line that says what; nothing read can crash the check."""

import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import save_file

from curriculumdp import verify
from curriculumdp.certificate import (
    Certificate,
    CertificateError,
    account,
    certificate_bytes,
    parse_certificate,
)
from curriculumdp.export import certified_releases
from curriculumdp.signature import SignatureError, load_signer, sign
from curriculumdp.verify import REQUIRED, WEIGHTS, file_sha256, read_certificate, verify_release
from tests.tiny_release import CONFIG, RELEASES, guarantee, write_keys, write_release


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a signed release, its signer's public key)."""
    folder = tmp_path_factory.mktemp("run")
    private, public = write_keys(folder, "ours")
    return write_release(folder / "release", signing_key=private), public


@pytest.fixture(scope="module")
def once() -> Callable[..., Any]:
    return functools.cache(account)


@pytest.fixture
def release(
    original: tuple[Path, Path], once: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy to be spoiled. Equal releases are accounted once for the whole file: it takes two seconds."""
    monkeypatch.setattr(verify, "account", once)
    return Path(shutil.copytree(original[0], tmp_path / "release"))


def certify_again(release: Path, **changes: Any) -> None:
    """Rewrites the certificate over what lies in the folder, as an unsigned forger would."""
    old = read_certificate(release)
    files = {name: file_sha256(release / name) for name in old.files if (release / name).is_file()}
    new = Certificate.model_validate(dict(old) | {"files": files} | changes)
    (release / "privacy.json").write_bytes(certificate_bytes(new))


def with_row(release: Path, **changes: Any) -> dict[str, Any]:
    """A guarantee whose second release is changed."""
    said = read_certificate(release).guarantee
    rows = (said.releases[0], said.releases[1].model_copy(update=changes))
    return {"guarantee": said.model_copy(update={"releases": rows})}


def test_clean_copy_has_no_problems(release: Path, original: tuple[Path, Path]) -> None:
    assert verify_release(release) == []
    assert verify_release(release, original[1]) == []


@pytest.mark.parametrize("name", sorted(REQUIRED | {"central.png"}))
def test_a_flipped_byte_is_named(release: Path, name: str) -> None:
    content = (release / name).read_bytes()
    for position in sorted({0, 1, len(content) // 3, len(content) // 2, len(content) - 1}):
        spoiled = bytearray(content)
        spoiled[position] ^= 0x10
        (release / name).write_bytes(spoiled)
        assert any(line.startswith(f"{name} was changed") for line in verify_release(release)), position
    (release / name).write_bytes(content[:-1])
    assert any(name in line for line in verify_release(release))


def test_every_flipped_byte_of_a_signed_certificate_is_noticed(
    release: Path, original: tuple[Path, Path]
) -> None:
    for name in ("privacy.json", "privacy.json.sig"):
        content = (release / name).read_bytes()
        for position in range(0, len(content) - 1, max(1, len(content) // 60)):
            spoiled = bytearray(content)
            spoiled[position] ^= 0x01
            (release / name).write_bytes(spoiled)
            assert verify_release(release, original[1]), (name, position)
        (release / name).write_bytes(content)


def test_removed_files_are_named(release: Path, original: tuple[Path, Path]) -> None:
    for name in sorted(REQUIRED | {"central.png"}):
        content = (release / name).read_bytes()
        (release / name).unlink()
        assert f"{name} is missing" in verify_release(release)
        (release / name).write_bytes(content)
    (release / "privacy.json.sig").unlink()
    assert verify_release(release) == []
    assert "not signed" in verify_release(release, original[1])[0]
    (release / "privacy.json").unlink()
    assert "privacy.json is missing" in verify_release(release)[0]


@pytest.mark.parametrize(
    "name", ["weights.bin", "unet/more.safetensors", "pickle.pkl", "unet/x/config.json", ".hidden"]
)
def test_added_files_are_named(release: Path, name: str) -> None:
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_bytes(pickle.dumps({}))
    top = "unet/x" if name.startswith("unet/x") else name
    assert verify_release(release) == [f"'{top}' does not belong in a release"]


def test_an_allowed_file_that_was_added_later_is_named(release: Path) -> None:
    (release / "central.png").unlink()
    certify_again(release)
    (release / "central.png").write_bytes(b"")
    assert verify_release(release) == ["central.png is not in privacy.json: it was added"]


def test_links_and_special_files_are_refused(release: Path, tmp_path: Path) -> None:
    (release / "README.md").rename(tmp_path / "README.md")
    (release / "README.md").symlink_to(tmp_path / "README.md")
    assert "'README.md' is a link, which a release may not hold" in verify_release(release)
    (release / "README.md").unlink()
    os.mkfifo(release / "README.md")
    assert "'README.md' does not belong in a release" in verify_release(release)
    (release / "unet").rename(tmp_path / "unet")
    (release / "unet").symlink_to(tmp_path / "unet")
    assert "'unet' is a link, which a release may not hold" in verify_release(release)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "unet/../../x", "x.bin"])
def test_a_certificate_cannot_name_other_files(release: Path, name: str) -> None:
    files = dict(read_certificate(release).files) | {name: "0" * 64}
    certificate = read_certificate(release).model_copy(update={"files": files})
    (release / "privacy.json").write_bytes(certificate_bytes(certificate))
    assert verify_release(release) == [f"{name!r} may not stand in privacy.json"]


def test_a_certificate_must_cover_the_weights(release: Path) -> None:
    files = {name: digest for name, digest in read_certificate(release).files.items() if name != WEIGHTS}
    certificate = read_certificate(release).model_copy(update={"files": files})
    (release / "privacy.json").write_bytes(certificate_bytes(certificate))
    assert f"{WEIGHTS} does not stand in privacy.json" in verify_release(release)


def test_pickled_weights_are_refused_even_where_certified(release: Path) -> None:
    (release / WEIGHTS).write_bytes(pickle.dumps({"weight": [1.0]}))
    certify_again(release)
    assert "is not in the safetensors format" in verify_release(release)[0]
    save_file({}, release / WEIGHTS)
    certify_again(release)
    assert verify_release(release) == [f"{WEIGHTS} holds no weights"]


def test_a_lower_epsilon_is_noticed(release: Path) -> None:
    said = read_certificate(release).guarantee
    certify_again(release, guarantee=said.model_copy(update={"epsilon": 1.0}))
    assert any("promises ε = 1 " in line and "cost" in line for line in verify_release(release))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"count": 4000}, "cost"),
        ({"count": 20}, "accounting.epsilon_of_releases"),
        ({"noise_multiplier": 0.6}, "cost"),
        ({"noise_multiplier": 3.0}, "accounting.epsilon_of_releases"),
        ({"sample_rate": 0.1}, "private.sample_rate"),
        ({"clip_norm": 0.5}, "private.clip_norm"),
        ({"noise_multiplier": 0.01}, "ε cannot be recomputed"),
    ],
)
def test_altered_releases_are_noticed(release: Path, change: dict[str, Any], word: str) -> None:
    certify_again(release, **with_row(release, **change))
    problems = verify_release(release)
    assert any(word in line for line in problems), problems


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"delta": 1e-3}, "privacy.delta"),
        ({"epsilon": 7.0}, "privacy.epsilon"),
        ({"public": {"units": 9, "classes": 3, "image_shape": (1, 8, 8)}}, "data.units"),
        ({"public": {"units": 1437, "classes": 3, "image_shape": (3, 8, 8)}}, "image shape"),
    ],
)
def test_facts_must_be_those_of_the_training_config(release: Path, change: dict[str, Any], word: str) -> None:
    said = read_certificate(release).guarantee
    certify_again(release, guarantee=type(said).model_validate(dict(said) | change))
    assert any(line.startswith(word) for line in verify_release(release))


def test_weights_that_training_began_from_are_certified_as_taken_for_public(tmp_path: Path) -> None:
    """Nothing here can show that they were: whoever reads the certificate must know that it hangs on it."""
    config = CONFIG | {"init_from": "chest-xrays"}
    with pytest.raises(CertificateError, match="init_from"):
        write_release(tmp_path / "silent", config=config)
    public = guarantee().public.model_copy(update={"initial_weights": "chest-xrays"})
    release = write_release(tmp_path / "release", config=config, guarantee=guarantee(public=public))
    assert verify_release(release) == []
    for file in ("privacy.json", "README.md"):
        assert "began from count as public too: chest-xrays." in (release / file).read_text()


def test_a_run_of_central_images_alone_verifies(tmp_path: Path) -> None:
    config = {**CONFIG, "curriculum": ["central", "warmup"]}
    said = guarantee(releases=certified_releases(RELEASES[:1], {"central": 4.0}))
    release = write_release(tmp_path / "release", config=config, guarantee=said)
    assert verify_release(release) == []
    (release / "training_config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert any(line.startswith("private.steps") for line in verify.config_problems(release, said))


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
        put("guarantee.releases", {}),
        put("guarantee.releases.0.count", 1.5),
        put("guarantee.releases.0.count", 10**30),
        put("guarantee.releases.0.sample_rate", 0.0),
        put("guarantee.releases.0.mechanism", "laplace"),
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


def test_a_certificate_is_the_same_bytes_after_reading(release: Path) -> None:
    content = (release / "privacy.json").read_bytes()
    assert certificate_bytes(parse_certificate(content)) == content
