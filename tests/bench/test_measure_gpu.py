"""What bench/measure_gpu.sh runs works where there is no GPU, or says in one line that there is none."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import profile_step, run_figures, step_nets
from bench.step_nets import Net
from curriculumdp.config.config import load_config

CONFIG = "configs/digits.yaml"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")


@no_gpu
def test_without_a_gpu_the_script_ends_at_once_with_one_line(tmp_path: Path) -> None:
    script = Path("bench/measure_gpu.sh").resolve()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no CUDA GPU that torch can use\n")


def test_data_that_is_not_there_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load_config(CONFIG, ["data.source=idx", "data.path=/nowhere/at/all"])
    assert "/nowhere/at/all" in (run_figures.missing(config) or "")
    assert run_figures.missing(load_config(CONFIG)) is None
    assert run_figures.real_set(config) == "idx:/nowhere/at/all"


def test_a_runs_line_has_its_time_a_step_without_the_stops_and_its_releases_quality(tmp_path: Path) -> None:
    config = load_config(CONFIG, [f"run_dir={tmp_path}"])
    times = [
        ("warmup", 0.0),
        ("warmup", 1.0),
        ("private", 9.0),
        ("private", 11.0),
        ("private", 5011.0),
        ("private", 5015.0),
    ]
    rows = [{"phase": phase, "step": number, "time": time} for number, (phase, time) in enumerate(times)]
    (tmp_path / "evaluation").mkdir()
    record = {
        "utility": {"wrn": {"mean": 0.9012}},
        "fidelity": {"fd": 1.5},
        "synthetic": {"images": 60000},
    }
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    line = run_figures.figures(config, rows)
    assert (line["warmup_s_per_step"], line["private_s_per_step"]) == ("1.0000", "3.0000")
    assert (line["private_steps"], line["finished"]) == (4, False)
    for _ in range(2):
        run_figures.keep(line, config, tmp_path / "results")
    (table,) = (tmp_path / "results").glob("runs_*.csv")
    with table.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == second
    assert json.loads(first["accuracy"]) == {"wrn": 90.12}
    assert first["images"] == "60000"


def test_a_profile_names_the_operations_of_our_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step_nets.NETS, "8px-0.4M", Net(8, 1, (8, 16), 1, (4,), 3))
    out = tmp_path / "profile.txt"
    command = "profile_step.py --device cpu --net 8px-0.4M --draws 1 --steps 1 --threads 1 --out"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(out)])
    assert profile_step.main() == 0
    text = out.read_text()
    assert "way ours" in text
    assert "aten::" in text
