"""Whatever text a user or an attacker gives: it is taken, or refused in one line; never a traceback, never a hang."""

import csv
import io
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from curriculumdp.checkpoint import load_latest
from curriculumdp.config.config import load_config
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.data.images import DataError
from curriculumdp.data.sources import load_images
from curriculumdp.ledger.chain import Chain, LedgerError, canonical
from curriculumdp.ledger.run_files import KEY, KIND, LEDGER, subkey
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release.certificate import CertificateError, certificate_bytes, parse_certificate
from tests.support.runs import finish, tiny
from tests.support.small_run import small
from tests.support.tiny_release import write_release
from tests.support.tried import TRIED

# YAML's and JSON's own letters, and some that are none.
SPECIAL = "&*!|>%@`'\"{}[],:?-#~=<0x1e9.:_ \t\n\\\0\x1b\u2028é𝔘" + string.ascii_letters[:8]
VALUES = st.one_of(
    st.text(SPECIAL, max_size=40),
    st.sampled_from(
        [
            *("", "null", "~", "yes", ".nan", ".inf", "-.inf", "1e999", "-0", "0x" + "f" * 5000, "9" * 5000),
            *(
                "[" * 3000,
                "{a: " * 3000,
                "&a [*a]",
                "<<: {a: 1}",
                "!!python/object:os.system x",
                "!!binary a",
            ),
            *(
                "2024-99-99",
                "2024-01-01",
                "1:" * 4000 + "1",
                "!!set {a}",
                "? a",
                "'",
                "- - - -",
                "[1, 2",
                "...",
            ),
            *("!!float 1:1:1", "\ud7ff", "a" * 5000, "{1: 2, [3]: 4}", "!!omap [a: 1]", "0o17", "1_000"),
        ]
    ),
    st.floats().map(str),
    st.integers(-(10**40), 10**40).map(str),
)


def examples(times: int, slow: int) -> list[Any]:
    """The same property as an unmarked test of a few inputs and as a slow one of many."""
    return [times, pytest.param(slow, marks=pytest.mark.slow)]


def fuzz(times: int, **inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Calls a function at once with `times` inputs, the same in every session."""

    def call(check: Callable[..., None]) -> None:
        def counted(**given_inputs: Any) -> None:
            TRIED["attacks fuzz inputs"] += 1
            check(**given_inputs)

        set_up = settings(
            max_examples=times,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        seed(8)(set_up(given(**inputs)(counted)))()

    return call


def one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(tiny(tmp_path / "run").resolved()))))
    return path


def keys_of(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found += [prefix + key, *(keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return found


@pytest.mark.parametrize("times", examples(250, 2500))
def test_any_override_is_taken_or_refused_in_one_line(config_file: Path, times: int) -> None:
    keys = keys_of(tiny(Path("run")).resolved())
    key = st.one_of(st.sampled_from(keys), st.text(SPECIAL + ".", max_size=20))

    @fuzz(
        times,
        pairs=st.lists(
            st.tuples(key, st.sampled_from(["=", "=", "=", "", ":"]), VALUES), min_size=1, max_size=3
        ),
    )
    def check(pairs: list[tuple[str, str, str]]) -> None:
        try:
            load_config(config_file, ["".join(pair) for pair in pairs])
        except ConfigError as error:
            one_line(error)


@pytest.mark.parametrize("times", examples(120, 4000))
def test_any_config_file_is_taken_or_refused_in_one_line(
    config_file: Path, tmp_path: Path, times: int
) -> None:
    content = config_file.read_bytes()
    place = st.integers(0, len(content))

    @fuzz(times, start=place, length=st.integers(0, 30), put=VALUES | st.binary(max_size=20))
    def check(start: int, length: int, put: str | bytes) -> None:
        new = put if isinstance(put, bytes) else put.encode(errors="surrogatepass")
        (tmp_path / "fuzzed.yaml").write_bytes(content[:start] + new + content[start + length :])
        try:
            load_config(tmp_path / "fuzzed.yaml")
        except ConfigError as error:
            one_line(error)


BOMBS = {
    "aliases": "a: &a [x, x]\n"
    + "".join(f"b{i}: &b{i} [{', '.join(['*b' + str(i - 1) if i else '*a'] * 9)}]\n" for i in range(12)),
    "merges": "a: &a {x: 1}\n"
    + "".join(
        f"b{i}: &b{i}\n  <<: [{', '.join(['*b' + str(i - 1) if i else '*a'] * 9)}]\n" for i in range(12)
    ),
    "base 60": "seed: 1" + ":1" * 300_000,
    "digits": "seed: 0x" + "f" * 900_000,
    "depth": "a: " + "[" * 400_000,
    "size": "a: 1\n" + "#" * 2_000_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_config_that_would_fill_memory_or_time_is_refused_at_once(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMBS[bomb])
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "bomb.yaml")
    one_line(caught.value)
    TRIED["attacks bombs"] += 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_release(tmp_path_factory.mktemp("r") / "release") / "privacy.json").read_bytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


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


def table(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


PATH = st.text("./\\~ab\0%\n\"',é", max_size=12) | st.sampled_from(
    [
        "a/ok.png",
        "./a/ok.png",
        "a/../a/ok.png",
        "../secret.png",
        "a/out.png",
        "out/secret.png",
        "/etc/passwd",
        "C:\\x",
        "a",
        "",
    ]
)


@pytest.mark.parametrize("times", examples(150, 4000))
def test_no_row_of_a_table_leads_out_of_its_folder(tmp_path: Path, times: int) -> None:
    """Files outside hold another colour: no pixel of that one is ever loaded."""
    from PIL import Image

    inside = tmp_path / "images"
    (inside / "a").mkdir(parents=True)
    Image.new("L", (8, 8), 10).save(inside / "a" / "ok.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "secret.png")
    (inside / "a" / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "out").symlink_to(tmp_path)
    cell = st.text('01a,"\n\r\0 é-', max_size=4) | st.sampled_from(["0", "1", "9" * 30, "-1", "1e3", "٣"])
    rows = st.lists(
        st.lists(cell, min_size=1, max_size=2).flatmap(lambda rest: PATH.map(lambda p: [p, *rest])),
        max_size=3,
    )
    head = st.sampled_from(
        [["path", "label"], ["path", "label", "unit"], ["path", "label", "unit", "more"], ["label"], [""]]
    )

    @fuzz(times, head=head, rows=rows, raw=st.none() | st.text(SPECIAL, max_size=40))
    def check(head: list[str], rows: list[list[str]], raw: str | None) -> None:
        text = table([head, *rows]) + (raw or "")
        (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
        try:
            images = load_images(
                source="image_folder", path=str(inside), csv=str(tmp_path / "table.csv"), classes=2, channels=1, size=8,
                units=max(1, len(rows)),
            )  # fmt: skip
            assert images.images.max() <= 10
        except DataError as error:
            one_line(error)


@pytest.mark.parametrize("times", examples(40, 1000))
def test_any_roster_is_taken_or_refused_in_one_line(tmp_path: Path, times: int) -> None:
    import numpy as np

    np.savez(
        tmp_path / "d.npz",
        images=np.zeros((2, 8, 8), np.uint8),
        labels=np.array([0, 1]),
        units=np.array(["a", "b"]),
    )

    @fuzz(times, roster=st.binary(max_size=30) | st.text("ab\n\r\u2028 ", max_size=12).map(str.encode))
    def check(roster: bytes) -> None:
        (tmp_path / "roster").write_bytes(roster)
        try:
            load_images(
                source="npz",
                path=str(tmp_path / "d.npz"),
                roster=str(tmp_path / "roster"),
                classes=2,
                channels=1,
                size=8,
                units=2,
            )
        except DataError as error:
            one_line(error)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/etc", "..", ".", "", "a\0b", "a" * 101, "-a", "é", "a b", "~"]
)
def test_a_data_sets_name_cannot_lead_out_of_the_state_folder(tmp_path: Path, data: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name") as caught:
        finish(small(tmp_path / "run", data, data__name=name, data__ledger=None))
    assert type(caught.value).__module__.startswith("curriculumdp")
    one_line(caught.value)
