"""The private figures of a step: one row for all ranks, JSON whatever is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curriculumdp.curriculum import private
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.metrics import Metrics
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World, WorldError, one_process
from tests.support.runs import NONCE, SECRET, in_world, tiny


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def rows(private_folder: Path) -> list[dict[str, Any]]:
    lines = (private_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def spoil(patch: pytest.MonkeyPatch) -> None:
    """Every third unit of a run's own microbatches has an image that is no number."""
    drawn = private.draw_batch

    def spoiled(images: Any, *given: Any) -> Any:
        batch = drawn(images, *given)
        if len(images.images) > 1000:  # not the dry step's
            batch.images.view(-1, 2, *batch.images.shape[1:])[::3] = np.nan
        return batch

    patch.setattr(private, "draw_batch", spoiled)


def test_the_figures_are_those_of_all_processes_and_json_even_where_units_are_left_out(tmp_path):
    def work(world: World, run_dir: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch)
            secret = RunSecret.from_bytes(SECRET) if world.is_main else None
            run_curriculum(tiny(run_dir), world, secret=secret, nonce=NONCE)

    assert in_world(1, lambda world: work(world, tmp_path / "1")) == [0]
    assert in_world(3, lambda world: work(world, tmp_path / "3")) == [0, 0, 0]
    seen = [rows(tmp_path / size / "private") for size in ("1", "3")]
    for one, three in zip(*seen, strict=True):
        assert {**one, "time": 0} == {**three, "time": 0}
    steps = [row for row in seen[0] if row["phase"] == "private"]
    assert all(row["excluded"] > 0 and row["loss"] > 0 and row["norm"] > 0 for row in steps)


def test_a_figure_that_is_no_number_is_null_and_not_shown(tmp_path, capsys):
    with Metrics(tmp_path, {"warmup": 1}, 0, lambda *_: 0.5, show_private=True) as metrics:
        metrics.step("warmup", 1, {"loss": float("nan"), "norm": float("inf"), "units": 3.0})
    (row,) = rows(tmp_path)
    assert (row["loss"], row["norm"], row["units"]) == (None, None, 3.0)
    assert "nan" not in capsys.readouterr().err


def test_figures_are_gathered_in_float64_alone():
    with pytest.raises(WorldError, match="float64"):
        one_process().gather_figures_(torch.zeros(3))
