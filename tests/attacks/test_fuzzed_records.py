"""Whatever a certificate, a ledger or a checkpoint's record holds: it is read, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from curriculumdp.checkpoint import load_latest
from curriculumdp.ledger.chain import Chain, LedgerError, canonical
from curriculumdp.ledger.run_files import KEY, KIND, LEDGER, subkey
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release.certificate import CertificateError, certificate_bytes, parse_certificate
from tests.support.fuzz import JSON, examples, fuzz, one_line
from tests.support.tiny_release import write_release


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_release(tmp_path_factory.mktemp("r") / "release") / "privacy.json").read_bytes()


@pytest.mark.parametrize("times", examples(200, 6000))
def test_any_certificate_is_read_or_refused_in_one_line(certificate: bytes, times: int) -> None:
    whole = json.loads(certificate)
    paths = [(section, key) for section, value in whole.items() if isinstance(value, dict) for key in value]

    @fuzz(
        times,
        path=st.sampled_from(paths),
        value=JSON,
        cut=st.integers(0, len(certificate)),
        raw=st.booleans(),
        put=st.binary(max_size=12),
    )
    def check(path: tuple[str, str], value: Any, cut: int, raw: bool, put: bytes) -> None:
        changed = json.loads(certificate)
        changed[path[0]][path[1]] = value
        text = (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")
        content = certificate[:cut] + put + certificate[cut + len(put) :] if raw else text
        try:
            assert certificate_bytes(parse_certificate(content)) == content
        except CertificateError as error:
            one_line(error)


def ledger_of(folder: Path, bodies: list[Any]) -> None:
    """A ledger with right MACs over whatever bodies: its key lies beside it."""
    key = b"k" * 32
    (folder / KEY).unlink(missing_ok=True)
    (folder / LEDGER).unlink(missing_ok=True)
    (folder / KEY).write_bytes(key)
    (folder / KEY).chmod(0o600)
    chain = Chain.create(folder / LEDGER, subkey(key, "chain"), KIND, bodies[0])
    for body in bodies[1:]:
        chain.append(body)
    chain.close()


PLAN = {
    **{"kind": "plan", "version": 2, "run": "0" * 32, "data": "0" * 64},
    "plan": {
        "events": [
            {
                "name": "private",
                "mechanism": "subsampled_gaussian",
                "sample_rate": 0.1,
                "noise_multiplier": 2.0,
                "count": 9,
            }
        ]
    },
}
ENTRY = {
    **{"kind": "charge", "phase": "private", "step": 0, "incarnation": 0, "sample_rate": 0.1},
    **{"noise_multiplier": 2.0, "clip_norm": 1.0, "sum_mac": "0" * 64},
}
FINITE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab\0é", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("times", examples(60, 1500))
def test_any_entry_under_a_right_key_is_read_or_refused_in_one_line(tmp_path: Path, times: int) -> None:
    """Another version's ledger, or one that who holds the key wrote."""

    @fuzz(times, which=st.sampled_from([PLAN, ENTRY]), value=FINITE, data=st.data())
    def check(which: dict[str, Any], value: Any, data: st.DataObject) -> None:
        changed = dict(which)
        key = data.draw(st.sampled_from([*changed, "more"]))
        if data.draw(st.booleans()):
            changed.pop(key, None)
        else:
            changed[key] = value
        ledger_of(tmp_path, [changed] if which is PLAN else [PLAN, changed])
        try:
            Ledger.read(tmp_path)
        except LedgerError as error:
            one_line(error)


@pytest.mark.parametrize("times", examples(150, 4000))
def test_any_bytes_as_a_ledger_are_refused_or_are_the_ledger(tmp_path: Path, times: int) -> None:
    ledger_of(tmp_path, [PLAN, ENTRY, ENTRY | {"step": 1}])
    content = (tmp_path / LEDGER).read_bytes()
    place = st.integers(0, len(content))

    @fuzz(times, start=place, length=st.integers(0, 40), put=st.binary(max_size=30))
    def check(start: int, length: int, put: bytes) -> None:
        (tmp_path / LEDGER).write_bytes(content[:start] + put + content[start + length :])
        try:
            kept = Ledger.read(tmp_path)
        except LedgerError as error:
            one_line(error)
        else:  # only what a crash can leave: whole lines, with at most a torn one behind
            lines = content.splitlines(keepends=True)
            entries = list(kept.entries())
            assert [canonical(entry) for entry in entries] == [
                canonical(json.loads(line)["body"]) for line in lines[: len(entries)]
            ]


@pytest.mark.parametrize("times", examples(80, 2000))
def test_any_checkpoint_record_is_passed_over_or_right(tmp_path: Path, times: int) -> None:
    folder = tmp_path / "2-private-0000003"
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(b"")
    warned: list[str] = []

    @fuzz(
        times,
        content=st.binary(max_size=60)
        | JSON.map(lambda value: json.dumps(value).encode(errors="surrogatepass")),
    )
    def check(content: bytes) -> None:
        (folder / "checkpoint.json").write_bytes(content)
        assert load_latest(tmp_path, b"k" * 32, warned.append) is None
        assert "2-private-0000003" in warned[-1]
