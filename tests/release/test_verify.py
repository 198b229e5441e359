"""Whatever is done to a release is noticed, in a line that says what; nothing read can crash the check."""

import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from safetensors.numpy import save_file

from curriculumdp.config.sections import CentralConfig, DataConfig
from curriculumdp.curriculum.central import clip_norm_of
from curriculumdp.privacy.accountant import ACCOUNTANT
from curriculumdp.release import verify
from curriculumdp.release.certificate import (
    Certificate,
    CertificateError,
    account,
    certificate_bytes,
    parse_certificate,
    statement,
)
from curriculumdp.release.export import certified_events
from curriculumdp.release.files import REQUIRED, WEIGHTS, file_sha256
from curriculumdp.release.signature import SignatureError, load_signer, sign
from curriculumdp.release.verify import (
    check_release,
    read_certificate,
    summary,
    verify_release,
)
from tests.support.tiny_release import CONFIG, EVENTS, guarantee, write_keys, write_release


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
    """A copy to be spoiled. Equal events are accounted once for the whole file: it takes two seconds."""
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
    rows = (said.events[0], said.events[1].model_copy(update=changes))
    return {"guarantee": said.model_copy(update={"events": rows})}


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
        ({"count": 4000}, "cost"),
        ({"count": 20}, "accounting.epsilon_of_events"),
        ({"noise_multiplier": 0.6}, "cost"),
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


def test_a_run_of_central_images_alone_verifies(tmp_path: Path) -> None:
    config = {**CONFIG, "curriculum": ["central", "warmup"]}
    said = guarantee(events=certified_events(EVENTS[:1], {"central": 4.0}))
    release = write_release(tmp_path / "release", config=config, guarantee=said)
    assert verify_release(release) == []
    (release / "training_config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert any(line.startswith("private.steps") for line in verify.config_problems(release, said))


# What nobody can hold against anything, each with the reason; all else is held against config, files or accountants.
FREE = {
    "guarantee.stopped": "who ended a run only its ledger knows; the counts must permit what is said",
    "guarantee.private_metrics_shown": "where the config is silent, only the run knows; it may say more than was",
    **{
        f"versions.{name}": "which program it was shows nowhere else; it may hold a version's characters alone"
        for name in ("curriculumdp", "torch", "diffusers", "safetensors", "cryptography")
    },
}


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value of nested JSON, lists and tables included, with the way to it."""
    if path:
        yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from fields(item, (*path, key))


def edits(value: Any) -> list[Any]:
    """Other values that a certificate may be able to hold there: nothing, a little less, a little more, another."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [None, value * (1 - 1e-5), value * (1 + 1e-5), value - 1e-3, value / 2]
    if isinstance(value, str):
        near = value[:-1] + ("0" if value[-1] != "0" else "1")
        return [near, "1.2.3", "operator", "budget", "gaussian", "all images of one patient", None]
    return [None, value[:-1]] if isinstance(value, list) else [None]


def edited(content: bytes, path: tuple[Any, ...], value: Any) -> bytes | None:
    """The certificate with one field edited, in its one form, or None if no certificate can hold that."""
    whole = json.loads(content)
    place = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    values = {key: item for key, item in whole.items() if key not in ("format", "statement")}
    try:
        return certificate_bytes(Certificate.model_validate_json(json.dumps(values)))
    except ValidationError:
        return None


def test_each_edited_field_of_a_certificate_is_noticed_or_declared_free(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who signs nothing, and rewrites words and form to fit. What costs seconds is asked last."""
    content, file = (release / "privacy.json").read_bytes(), release / "privacy.json"
    found, recompute = verify.recompute(read_certificate(release).guarantee), verify.recompute
    tried, free = set(), set()
    for path, value in fields({k: v for k, v in json.loads(content).items() if k != "statement"}):
        name = ".".join(map(str, path))
        for other in edits(value):
            new = edited(content, path, other)
            if new is None or new == content:
                continue
            file.write_bytes(new)
            tried.add(name)
            monkeypatch.setattr(verify, "recompute", lambda _: found)
            if not verify_release(release):
                monkeypatch.setattr(verify, "recompute", recompute)
                if not verify_release(release):
                    free.add(name)
    assert free == set(FREE)
    needed = (
        "guarantee.epsilon",
        "guarantee.unit",
        "guarantee.events.1.noise_multiplier",
        "accounting.opacus",
    )
    assert {
        *needed,
        "guarantee.events",
        "accounting.epsilon_replace_one",
        "accounting.opacus_prv.0",
    } <= tried


def restated(release: Path, **changes: Any) -> list[str]:
    certify_again(release, accounting=read_certificate(release).accounting.model_copy(update=changes))
    return verify_release(release)


@pytest.mark.parametrize("name", ["epsilon_of_events", "epsilon_replace_one", "opacus_rdp", "opacus_prv"])
def test_a_figure_may_be_another_versions_larger_one_but_never_a_lower_one(release: Path, name: str) -> None:
    certificate = read_certificate(release)
    true = getattr(certificate.accounting, name)

    def scaled(factor: float) -> Any:
        return tuple(value * factor for value in true) if isinstance(true, tuple) else true * factor

    older = {"dp-accounting": "0.4.1", "opacus": "1.4.0"}
    texts = {
        "accountant": certificate.accounting.accountant.replace(
            version("dp-accounting"), older["dp-accounting"]
        ),
        "opacus": older["opacus"],
    }
    line = f"accounting.{name}"
    assert any(line in problem for problem in restated(release, **{name: scaled(1 + 1e-5)}))
    assert any(line in problem for problem in restated(release, **{name: scaled(1 - 1e-5)}))
    assert (
        restated(release, **{name: scaled(1 + 1e-8)}) == restated(release, **{name: scaled(1 - 1e-8)}) == []
    )
    certify_again(release, versions=dict(certificate.versions) | older)
    assert restated(release, **{name: scaled(1 + 1e-4)}, **texts) == []
    for factor in (1 - 1e-5, 1 - 1e-3, 1.2):
        assert any(line in problem for problem in restated(release, **{name: scaled(factor)}, **texts)), (
            factor
        )


def test_a_figure_left_out_or_put_in_is_noticed() -> None:
    found = account(guarantee())
    for name in ("epsilon_replace_one", "opacus_prv"):
        without = found.model_copy(update={name: None})
        assert [name in line for line in verify.figure_problems(without, found)] == [True]
        assert [name in line for line in verify.figure_problems(found, without)] == [True]
    assert verify.figure_problems(found, found) == []


COURSES: list[tuple[tuple[str, ...], str, dict[str, int], bool, str]] = [
    # curriculum, stopped, counts (3 queries and 40 steps are planned), central.png, what is wrong with it
    (("central", "private"), "planned", {"central": 3, "private": 40}, True, ""),
    (("central", "private"), "planned", {"central": 4, "private": 41}, True, ""),
    (("central", "private"), "planned", {}, True, "lists no event"),
    (("central", "private"), "planned", {"central": 3}, True, "private.steps"),
    (("central", "private"), "planned", {"private": 40}, False, "central.queries"),
    (("central", "private"), "planned", {"central": 3, "private": 39}, True, "private.steps"),
    (("central", "private"), "operator", {"central": 3, "private": 7}, True, ""),
    (("central", "private"), "operator", {"central": 2}, True, ""),
    (("central", "private"), "operator", {"central": 1}, False, ""),
    (("central", "private"), "operator", {}, True, "central.png"),
    (("central", "private"), "operator", {}, False, "lists no event"),
    (("central", "private"), "operator", {"central": 0, "private": 0}, False, "lists no event"),
    (("central", "private"), "operator", {"private": 7}, False, "not all the queries"),
    (("central", "private"), "operator", {"private": 7}, True, "central.png"),
    (("central", "private"), "operator", {"central": 2, "private": 7}, True, "not all the queries"),
    (("central", "private"), "budget", {"central": 3, "private": 40}, True, ""),
    (("central", "private"), "budget", {"central": 5, "private": 20}, True, ""),
    (("central", "private"), "budget", {"central": 2}, True, "stopped is budget"),
    (("central", "private"), "budget", {}, False, "stopped is budget"),
    (("central", "private"), "planned", {"private": 40, "central": 3}, True, "in this order"),
    (("central", "private"), "planned", {"central": 3, "private": 40, "more": 1}, True, "in this order"),
    (("central",), "planned", {"central": 3}, True, ""),
    (("central",), "planned", {}, True, "central.queries"),
    (("central",), "operator", {"central": 3, "private": 1}, True, "in this order"),
    (("private",), "planned", {"private": 40}, False, ""),
    (("private",), "planned", {"private": 40}, True, "central.png"),
    (("private",), "operator", {"central": 1, "private": 40}, True, "in this order"),
    (("private",), "operator", {}, False, "lists no event"),
    (("private",), "budget", {"private": 39}, False, "stopped is budget"),
]


@pytest.mark.parametrize(("phases", "stopped", "counts", "picture", "wrong"), COURSES)
def test_releases_must_be_what_a_run_of_the_config_can_have_come_to(
    tmp_path: Path, phases: tuple[str, ...], stopped: str, counts: dict[str, int], picture: bool, wrong: str
) -> None:
    first, second = guarantee().events
    kinds = {"central": first, "private": second, "more": second.model_copy(update={"name": "more"})}
    rows = tuple(kinds[name].model_copy(update={"count": count}) for name, count in counts.items())
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(CONFIG | {"curriculum": list(phases)}))
    if picture:
        (tmp_path / "central.png").write_bytes(b"")
    problems = verify.config_problems(tmp_path, guarantee(events=rows, stopped=stopped))
    assert any(wrong in line for line in problems) if wrong else problems == []


def test_each_phase_stands_once(tmp_path: Path) -> None:
    first, second = guarantee().events
    half = second.model_copy(update={"count": 20})
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(CONFIG))
    problems = verify.config_problems(tmp_path, guarantee(events=(first, half, half)))
    assert any("each once" in line for line in problems)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_a_clip_norm_that_the_config_leaves_open_is_the_one_that_training_takes(
    tmp_path: Path, statistic: str
) -> None:
    central = CONFIG["central"] | {"statistic": statistic}
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(CONFIG | {"central": central}))
    taken = clip_norm_of(CentralConfig(**central), DataConfig(source="digits", **CONFIG["data"]))
    first, second = guarantee().events
    for clip_norm in (taken, taken * 2):
        rows = (first.model_copy(update={"clip_norm": clip_norm}), second)
        assert bool(verify.config_problems(tmp_path, guarantee(events=rows))) == (clip_norm != taken)


def test_what_is_printed_is_what_was_recomputed(release: Path) -> None:
    checked = check_release(release)
    assert checked.certificate is not None
    assert checked.recomputed is not None
    other = checked.recomputed.model_copy(
        update={"epsilon_of_events": 1.00000049, "epsilon_replace_one": 2.0}
    )
    said = checked.certificate.guarantee.model_copy(update={"epsilon": 1.0000049, "delta": 1.0000001e-5})
    printed = "\n".join(summary(checked.certificate.model_copy(update={"guarantee": said}), other))
    assert "promised: ε = 1.00001 at δ = 1.00001e-05, zero-out\n" in printed
    assert printed.endswith("\na unit is 'one image'")
    assert "PLD 1.00001," in printed
    assert "under replace-one: PLD 2\n" in printed
    assert f"recomputed with: {ACCOUNTANT}; Opacus {version('opacus')}" in printed


def test_replace_ones_own_figure_is_stated_rounded_up() -> None:
    cost = account(guarantee())
    for figure, words in ((2.0000049, "epsilon is 2.00001:"), (None, "no finite epsilon was found")):
        said = statement(
            guarantee(epsilon=1.0000049), cost.model_copy(update={"epsilon_replace_one": figure})
        )
        assert words in said["adjacency"]
        assert "still sampled and packed" in said["adjacency"]
        assert "(1.00001, 0.0001)-differentially private" in said["guarantee"]


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


def test_a_certificate_is_the_same_bytes_after_reading(release: Path) -> None:
    content = (release / "privacy.json").read_bytes()
    assert certificate_bytes(parse_certificate(content)) == content


@pytest.mark.parametrize("stopped", ["planned", "operator"])
def test_more_noise_than_the_plan_was_solved_for_is_refused(release: Path, stopped: str) -> None:
    """An unsigned sender multiplies σ and recomputes all that follows from it: each figure then agrees."""
    changes = {"noise_multiplier": 1e5} | ({"count": 7} if stopped == "operator" else {})
    guarantee = with_row(release, **changes)["guarantee"].model_copy(update={"stopped": stopped})
    certify_again(release, guarantee=guarantee, accounting=verify.account(guarantee))
    problem = "\n".join(verify_release(release))
    assert "private.noise_multiplier is 100000" in problem
    assert "noise is solved to use all of 6" in problem


def test_a_run_that_ended_early_under_its_own_noise_verifies(release: Path) -> None:
    guarantee = with_row(release, count=7)["guarantee"].model_copy(update={"stopped": "operator"})
    certify_again(release, guarantee=guarantee, accounting=verify.account(guarantee))
    assert verify_release(release) == []
