"""Whatever a config or an override says: it is taken, or refused in one line; never a traceback, never a hang."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from curriculumdp.config.config import load_config
from curriculumdp.config.yaml_file import ConfigError
from tests.support.fuzz import SPECIAL, VALUES, examples, fuzz, one_line
from tests.support.runs import tiny
from tests.support.tried import TRIED


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
