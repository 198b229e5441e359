"""Whatever is done to a release's files or figures is noticed, in a line that says what."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from curriculumdp.release.certificate import CertificateError, PublicFacts, certificate_bytes
from curriculumdp.release.files import REQUIRED, WEIGHTS, release_of
from curriculumdp.release.verify import (
    read_certificate,
    verify_release,
)
from tests.support.forged import certify_again, with_row
from tests.support.tiny_release import CONFIG, guarantee, write_release


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
    assert verify_release(release) == [f"{name!r} may not be listed in privacy.json"]


def test_a_certificate_must_cover_the_weights(release: Path) -> None:
    files = {name: digest for name, digest in read_certificate(release).files.items() if name != WEIGHTS}
    certificate = read_certificate(release).model_copy(update={"files": files})
    (release / "privacy.json").write_bytes(certificate_bytes(certificate))
    assert f"{WEIGHTS} must be listed in privacy.json" in verify_release(release)


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
        ({"count": 60}, "cost"),
        ({"count": 20}, "accounting.epsilon_of_events"),
        ({"noise_multiplier": 1.0}, "cost"),
        ({"noise_multiplier": 3.0}, "accounting.epsilon_of_events"),
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
        assert "started from are treated as public too: chest-xrays." in (release / file).read_text()


@pytest.mark.parametrize("beside", ["unet", "samples.png", "privacy.json"])
def test_a_model_beside_a_release_does_not_stand_for_it(tmp_path: Path, beside: str) -> None:
    run, release = tmp_path / "run", tmp_path / "run" / "release"
    release.mkdir(parents=True)
    assert release_of(run) == release
    (run / beside).symlink_to("nowhere")
    assert release_of(run) == run


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_id2label", {"0": "well", "1": "ill", "2": "dead"}),
        ("num_class_embeds", 6),
        ("num_class_embeds", 2),
        ("num_class_embeds", None),
        ("in_channels", 3),
        ("sample_size", 16),
    ],
    ids=str,
)
def test_what_diffusers_reads_must_be_what_the_certificate_states(
    release: Path, key: str, value: object
) -> None:
    """By somebody who certifies the files anew."""
    file = release / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    certify_again(release)
    assert [problem for problem in verify_release(release) if problem.startswith(key)] != []


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 10_000, "null"], ids=len)
def test_a_networks_config_that_is_none_is_named(release: Path, content: str) -> None:
    (release / "unet" / "config.json").write_text(content)
    certify_again(release)
    assert "unet/config.json is not a network's config" in verify_release(release)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "a"), ("a", "b", "c", "d"), ()])
def test_a_certificate_names_each_class_once_or_none(names: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="a name of its own"):
        PublicFacts(units=5, classes=3, image_shape=(1, 8, 8), id2label=names)
