"""Each field of a certificate is held against config, files or a recomputation, or this file says why not."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curriculumdp.privacy.accountant import ACCOUNTANT
from curriculumdp.release import verify
from curriculumdp.release.certificate import (
    Certificate,
    account,
    certificate_bytes,
    parse_certificate,
    statement,
)
from curriculumdp.release.verify import (
    check_release,
    read_certificate,
    summary,
    verify_release,
)
from tests.support.forged import certify_again
from tests.support.tiny_release import guarantee

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


def test_what_is_printed_is_what_was_recomputed(release: Path) -> None:
    checked = check_release(release)
    assert checked.certificate is not None
    assert checked.recomputed is not None
    other = checked.recomputed.model_copy(
        update={"epsilon_of_events": 1.00000049, "epsilon_replace_one": 2.0}
    )
    said = checked.certificate.guarantee.model_copy(update={"epsilon": 1.0000049, "delta": 1.0000001e-5})
    certificate = checked.certificate.model_copy(update={"guarantee": said})
    printed = "\n".join(summary(Path("release"), certificate, other, None))
    assert "at most ε = 1.00001 at δ = 1.00001e-05 per unit" in printed
    assert printed.endswith("\na unit is 'one image'")
    assert "which the promise rests on; it must not exceed the promise): ε = 1.00001\n" in printed
    assert "so a larger value is expected): ε = 2\n" in printed
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


def test_a_certificate_is_the_same_bytes_after_reading(release: Path) -> None:
    content = (release / "privacy.json").read_bytes()
    assert certificate_bytes(parse_certificate(content)) == content
