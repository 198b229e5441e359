"""With a signer's key any changed byte of a release is noticed; without one, whatever contradicts the certificate."""

import functools
import itertools
import json
import random
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curriculumdp.release import verify
from curriculumdp.release.certificate import Certificate, certificate_bytes
from curriculumdp.release.files import file_sha256
from curriculumdp.release.signature import is_signed, load_signer
from curriculumdp.release.verify import read_certificate, verify_release
from tests.support.tiny_release import CONFIG, guarantee, write_keys, write_release
from tests.support.tried import TRIED

SEED = 7
# The tiny release's config with what a real one also states.
WHOLE = CONFIG | {
    "data": CONFIG["data"] | {"unit": "one image"},
    "central": CONFIG["central"] | {"queries": 3},
    "private": CONFIG["private"] | {"steps": 40},
    "logging": {"show_private_metrics": True, "track_private_metrics": True},
}
# What a certificate without a signature cannot prove: who wrote it with which program, and a worse reason to stop.
UNPROVED = {"guarantee.stopped"}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a signed release, its signer's public key)."""
    folder = tmp_path_factory.mktemp("signed")
    private, public = write_keys(folder, "ours")
    said = guarantee(private_metrics_shown=True)
    return write_release(folder / "release", signing_key=private, config=WHOLE, guarantee=said), public


@pytest.fixture
def release(signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verify, "account", functools.cache(verify.account))
    return Path(shutil.copytree(signed[0], tmp_path / "release"))


def change_bytes(release: Path, public: Path, each: int, seed: int) -> None:
    """Changes `each` random bytes of every file, one after the other; each must be noticed."""
    rng = random.Random(seed)
    assert verify_release(release, public) == []
    for file in sorted(path for path in release.rglob("*") if path.is_file()):
        content = file.read_bytes()
        ends = [0, len(content) - 1, len(content) - 2, len(content) - 3, len(content) - 4]
        for place in [*ends, *(rng.randrange(len(content)) for _ in range(each))]:
            spoilt = bytearray(content)
            spoilt[place] = (spoilt[place] + rng.randrange(1, 256)) % 256
            file.write_bytes(rng.choice([spoilt, spoilt, spoilt, content[:place], content + spoilt[place:]]))
            TRIED["attacks changed bytes"] += 1
            assert verify_release(release, public), f"{file.name}, byte {place}"
        file.write_bytes(content)
    assert verify_release(release, public) == []


def test_changed_bytes_of_every_file_are_noticed(release: Path, signed: tuple[Path, Path]) -> None:
    change_bytes(release, signed[1], 8, SEED)


@pytest.mark.slow
def test_many_changed_bytes_of_every_file_are_noticed(release: Path, signed: tuple[Path, Path]) -> None:
    change_bytes(release, signed[1], 400, SEED + 1)


def test_every_byte_of_a_signature_counts(signed: tuple[Path, Path]) -> None:
    """Base64 has several texts for the same bytes, and a line may end in several ways."""
    content, signer = (signed[0] / "privacy.json").read_bytes(), load_signer(signed[1])
    signature = (signed[0] / "privacy.json.sig").read_bytes()
    assert is_signed(content, signature, signer)
    for place in range(len(signature)):
        for bit in range(8):
            other = bytearray(signature)
            other[place] ^= 1 << bit
            TRIED["attacks changed bytes"] += 1
            assert not is_signed(content, bytes(other), signer), (place, bit)
    plain = signature.strip()
    for letter in (
        string.ascii_letters + string.digits + "+/"
    ):  # four bits of the last letter decode to nothing
        other = plain[:85] + letter.encode() + plain[86:] + b"\n"
        assert is_signed(content, other, signer) == (other == signature), letter
    for other in (plain, plain + b"\r\n", plain + b"\n\n", b" " + signature, signature * 2, b"", plain[:-1]):
        assert not is_signed(content, other, signer)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value of nested JSON with the way to it."""
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if inner is None:
        yield path, value
    else:
        for key, item in inner:
            yield from leaves(item, (*path, key))


def others(value: Any) -> list[Any]:
    """Values a little and a lot off, of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, max(0, value - 1), value * 10]
    if isinstance(value, float):
        return [value * 0.9, value * 1.1, value / 100]
    return [value[:-1] + ("0" if value[-1] != "0" else "1"), "budget", "gaussian", "two people"]


def forged(content: bytes, path: tuple[Any, ...], value: Any) -> bytes | None:
    """The certificate with one value changed, in its one form, or None if no certificate can hold it."""
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


def forgeries(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Each field of a certificate with other values, the rest rewritten to fit."""
    whole = json.loads(content)
    for path, value in leaves({key: whole[key] for key in ("guarantee", "accounting", "versions", "files")}):
        for other in others(value) if value is not None else []:
            new = forged(content, path, other)
            if new is not None and new != content:
                TRIED["attacks forged fields"] += 1
                yield ".".join(map(str, path)), new


def test_every_forged_field_of_a_certificate_is_noticed_by_its_signature(
    release: Path, signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        verify, "recompute", lambda _: (None, [])
    )  # what the accountants see is the slow test's
    for name, new in forgeries((release / "privacy.json").read_bytes()):
        (release / "privacy.json").write_bytes(new)
        assert any("not signed by" in line for line in verify_release(release, signed[1])), name


@pytest.mark.slow
def test_every_forged_field_that_promises_more_is_noticed_without_a_signature(release: Path) -> None:
    unnoticed = set()
    for name, new in forgeries((release / "privacy.json").read_bytes()):
        (release / "privacy.json").write_bytes(new)
        if not verify_release(release):
            unnoticed.add(name)
    assert {name for name in unnoticed if not name.startswith("versions.")} <= UNPROVED, unnoticed


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"events": ()}, "private.steps"),
        ({"unit": "all images of one patient"}, "data.unit"),
        ({"private_metrics_shown": False}, "logging.show_private_metrics"),
        ({"private_metrics_shown": False}, "logging.track_private_metrics"),
        ({"epsilon": 0.5}, "cost"),
        ({"epsilon": 7.0}, "privacy.epsilon"),
    ],
)
def test_a_certificate_rewritten_to_promise_more_is_noticed(
    release: Path, change: dict[str, Any], word: str
) -> None:
    """The forger writes a whole certificate anew, figures of the accountants included."""
    said = read_certificate(release).guarantee
    certificate = read_certificate(release).model_copy(update={"guarantee": said.model_copy(update=change)})
    (release / "privacy.json").write_bytes(certificate_bytes(certificate))
    assert any(word in line for line in verify_release(release)), verify_release(release)


def test_files_that_are_exchanged_removed_or_added_are_noticed_even_if_certified_files_agree(
    release: Path, signed: tuple[Path, Path]
) -> None:
    names = sorted(read_certificate(release).files)
    for one, other in itertools.pairwise(names):
        contents = (release / one).read_bytes(), (release / other).read_bytes()
        (release / one).write_bytes(contents[1])
        (release / other).write_bytes(contents[0])
        assert verify_release(release, signed[1]), (one, other)
        (release / one).write_bytes(contents[0])
        (release / other).write_bytes(contents[1])
    digest = file_sha256(release / names[0])
    assert digest == read_certificate(release).files[names[0]]
