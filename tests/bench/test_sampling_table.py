"""The table of sampling presets shows what was measured, and says what was not."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "sampling_quality.py"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_presets_are_means_over_releases_or_not_measured(names: dict[str, Any]) -> None:
    row = {"sampler": "dpm", "steps": "18", "fd": "1.5", "precision": "0.5", "recall": "0.25"}
    lines = names["presets_table"]([row | {"logistic": "90"}, row | {"logistic": "93"}])
    assert [line.split() for line in lines[2:]] == [
        ["utility", "dpm", "18", "91.50", "1.50", "0.50", "0.25", "2"],
        ["fidelity", "churn", "14", "not", "measured"],
    ]


def test_the_documented_table_is_what_the_benchmark_prints(names: dict[str, Any]) -> None:
    recipes = (SCRIPT.parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for line in names["presets_table"](names["read_rows"](names["RESULTS"] / "sampling_quality.csv"))[1:]:
        assert "| " + " | ".join(line.split()[:-1]) + " |" in recipes
