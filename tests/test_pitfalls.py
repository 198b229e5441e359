"""The pitfalls table names, for every fault, a test that exists, and SECURITY.md one for every promise."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "curriculumdp" / "privacy" / "README.md"
ROWS = [
    line for line in TABLE.read_text().splitlines() if re.match(r"\| [^-]", line) and "how it is" not in line
]
PROMISES = [
    line
    for line in (ROOT / "SECURITY.md").read_text().splitlines()
    if re.match(r"\| .*`tests/\S+` \|$", line)
]


@pytest.mark.parametrize("row", [*ROWS, *PROMISES], ids=lambda row: row[2:40])
def test_every_pitfall_names_a_test_that_exists(row: str) -> None:
    *_, where = (cell.strip() for cell in row.strip("|").split(" | "))
    named = re.fullmatch(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`", where)
    assert named, f"no test is named: {where}"
    path, test = ROOT / named[1], named[2]
    assert path.exists()
    if test is not None:
        functions = {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}
        assert test in functions


def test_the_table_is_there() -> None:
    assert len(ROWS) >= 40
    assert len(PROMISES) >= 15
