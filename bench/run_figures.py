"""python bench/run_figures.py CONFIG [--check] [key.path=value ...]: append a run's cost and quality.

Appends one line with what the run has cost and the quality of its release.

The run is CONFIG's, finished or not. Its data must be PUBLIC: the line goes to bench/results/runs_DEVICE.csv, and times
reveal batch sizes. GPU-hours are the time between the steps in private/metrics.jsonl, without interruptions, times the
number of processes; seconds per step are the median of each phase without its first step. Accuracies and distances are
those that launch/evaluate.py wrote next to the release, with its plot of accuracies; empty if it has not run.

--check only looks for what training on a GPU needs, a GPU and the data, and prints the run's folder and evaluate.py's
name for the data set. If something is missing it prints one line and exits 2.
"""

import argparse
import csv
import json
import shlex
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

from bench.bench_step import cpu_name  # noqa: E402
from curriculumdp.command import one_line_errors  # noqa: E402
from curriculumdp.config.config import Config, load_config  # noqa: E402
from curriculumdp.evaluation.record import RECORD, UTILITY, public_folder  # noqa: E402
from curriculumdp.phases import PHASE_NAMES  # noqa: E402
from curriculumdp.report.quality import PAUSE, seconds_by_phase  # noqa: E402

RESULTS = ROOT / "bench" / "results"
COLUMNS = [
    *("date", "device", "torch", "name", "epsilon", "precision", "microbatch", "draws", "processes"),
    *(f"{phase}_steps" for phase in PHASE_NAMES),
    *(f"{phase}_s_per_step" for phase in PHASE_NAMES),
    *("gpu_hours", "finished", "images", "accuracy", "fidelity", "command"),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file of the run")
    parser.add_argument("--check", action="store_true", help="only check whether training could start")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="the run's overrides")
    asked = parser.parse_intermixed_args()
    with one_line_errors():
        config = load_config(asked.config, asked.overrides)
        if asked.check:
            if lacking := missing(config):
                parser.exit(2, f"error: {lacking}\n")
            print(config.run_dir, real_set(config))
            return 0
        log = Path(config.run_dir, "private", "metrics.jsonl")
        if not log.is_file():
            parser.exit(2, f"error: {log} not found: the run has made no step yet\n")
        line = figures(config, [json.loads(text) for text in log.read_text().splitlines()])
        keep(line, config, asked.out)
    return 0


def missing(config: Config) -> str | None:
    """Return what training `config` on a GPU lacks, or None."""
    if not torch.cuda.is_available():
        return "no CUDA GPU that torch can use"
    path = config.data.path
    if path is not None and not Path(path).exists():
        return f"data.path: no data at {path}: put it there or use another config"
    return None


def real_set(config: Config) -> str:
    """Return launch/evaluate.py's name for the held-out images, or "" if the source has none."""
    if config.data.source == "digits":
        return "digits"
    return f"idx:{config.data.path}" if config.data.source == "idx" else ""


def figures(config: Config, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the CSV line of a run with the steps `rows`."""
    on_gpu = torch.cuda.is_available()
    processes = config.compute.processes or 1
    seconds = sum(seconds_by_phase(rows).values()) * processes
    line: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "torch": torch.__version__,
        "name": config.name,
        "epsilon": config.privacy.epsilon,
        "precision": config.compute.precision,
        "microbatch": config.compute.microbatch,
        "draws": config.private.draws if config.private else "",
        "processes": processes,
        "gpu_hours": f"{seconds / 3600:.4f}" if on_gpu else "",
        "finished": Path(config.run_dir, "release").exists(),
        "command": shlex.join(["python", *sys.argv]),
    }
    for phase in PHASE_NAMES:
        line[f"{phase}_steps"] = len({row["step"] for row in rows if row["phase"] == phase})
        gaps = step_seconds(rows, phase)
        line[f"{phase}_s_per_step"] = f"{statistics.median(gaps):.4f}" if gaps else ""
    return line | quality(public_folder(Path(config.run_dir)) / RECORD)


def step_seconds(rows: Sequence[Mapping[str, Any]], phase: str) -> list[float]:
    """Return the seconds of each step that follows another step of the same phase, interruptions left out."""
    gaps = [
        after["time"] - before["time"]
        for before, after in pairwise(rows)
        if before["phase"] == after["phase"] == phase
    ]
    return [gap for gap in gaps if 0 <= gap <= PAUSE]


def quality(record: Path) -> dict[str, Any]:
    """Return the columns from an evaluation's public record, or nothing if there is none."""
    if not record.is_file():
        return {}
    found = json.loads(record.read_text())
    accuracy = {name: round(100 * value["mean"], 2) for name, value in found.get("utility", {}).items()}
    return {
        "images": found["synthetic"]["images"],
        "accuracy": json.dumps(accuracy),
        "fidelity": json.dumps(found.get("fidelity", {})),
    }


def keep(line: Mapping[str, Any], config: Config, out: Path) -> None:
    """Append the line and copy the evaluation's plot next to it."""
    out.mkdir(parents=True, exist_ok=True)
    table = out / f"runs_{'cuda' if torch.cuda.is_available() else 'cpu'}.csv"
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)
    picture = public_folder(Path(config.run_dir)) / UTILITY
    if picture.is_file():
        shutil.copy(picture, out / f"{config.name}_utility.png")
    print({key: line[key] for key in COLUMNS if key in line and key not in ("command", "fidelity")})
    print(f"-> {table}")


if __name__ == "__main__":
    sys.exit(main())
