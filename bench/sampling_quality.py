"""python bench/sampling_quality.py RELEASE ...: measure the quality of digits releases by sampler and number of steps.

Cost is counted in network evaluations per image: one per step for DPM-Solver and Euler, two per step (one fewer at the
end) for Heun and churn. Appends one line per release, sampler and number of steps to
bench/results/sampling_quality.csv, skips lines that it already has, draws sampling_quality_fd.png and _lr.png from it,
and prints a table of the presets of `launch/sample.py --for`. Without releases it only draws and prints. All data are
public: the feature network is trained on the digits' training split; FD, precision and recall compare with the 360
held-out images.
"""

import argparse
import csv
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

from curriculumdp.config.sections import SamplingConfig  # noqa: E402
from curriculumdp.diffusion.networks import UNet2DModel  # noqa: E402
from curriculumdp.diffusion.pipeline import load_pipeline  # noqa: E402
from curriculumdp.evaluation.fidelity import FeatureNetwork, fidelity, train_features  # noqa: E402
from curriculumdp.evaluation.labelled import LabelledSet  # noqa: E402
from curriculumdp.evaluation.released import draw_from, load_set, read_released  # noqa: E402
from curriculumdp.evaluation.utility import accuracy  # noqa: E402
from curriculumdp.plots import EASY, HARD, QUIET, REAL, axes, figure_bytes  # noqa: E402
from curriculumdp.release.manner import PURPOSES, Manner  # noqa: E402

RESULTS = ROOT / "bench" / "results"
IMAGES = 2000
STEPS = {
    "dpm": (5, 8, 12, 18, 28, 40, 80),
    "euler": (5, 8, 12, 18, 28, 40, 80),
    "heun": (3, 5, 9, 14, 20, 40),
    "churn": (5, 9, 14, 20, 40),
}
COLUMNS = [
    *("release", "sampler", "steps", "evaluations", "logistic", "fd", "kid", "precision", "recall"),
    *("cpu_seconds", "images", "torch", "date"),
]
TICKS = (5, 10, 20, 40, 80)
COLOURS = {"dpm": HARD, "heun": REAL, "euler": QUIET, "churn": EASY}


def evaluations(sampler: str, steps: int) -> int:
    """Return the number of network evaluations per image."""
    return 2 * steps - 1 if sampler in ("heun", "churn") else steps


def measured(
    net: UNet2DModel, sigma_data: float, sampler: str, steps: int, real: LabelledSet, network: FeatureNetwork
) -> dict[str, Any]:
    """Draw one set of synthetic digits and return its scores."""
    cpu = time.process_time()
    drawn = draw_from(net, sigma_data, 10, sampler=sampler, steps=steps, count=IMAGES, seed=0)
    seconds = time.process_time() - cpu
    scores = {name: round(value, 5) for name, value in fidelity(network, real, drawn).items()}
    return {
        "sampler": sampler,
        "steps": steps,
        "evaluations": evaluations(sampler, steps),
        "logistic": round(100 * accuracy("logistic", drawn, real, 0), 3),
        **scores,
        "cpu_seconds": round(seconds, 2),
        "images": IMAGES,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the lines of the CSV, none if there is no file."""
    if not table.exists():
        return []
    with table.open() as file:
        return list(csv.DictReader(file))


def draw_curves(rows: list[dict[str, str]], score: str, label: str, out: Path) -> None:
    """Plot quality against evaluations, one curve per sampler, as means over the releases."""
    figure, plot = axes("network evaluations per image", label)
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        points[row["sampler"]][int(row["evaluations"])].append(float(row[score]))
    for sampler, curve in points.items():
        costs = sorted(curve)
        plot.plot(costs, [mean(curve[x]) for x in costs], "o-", ms=3, label=sampler, color=COLOURS[sampler])
    plot.set_xscale("log")
    plot.set_xticks(TICKS, map(str, TICKS))
    plot.set_xticks([], minor=True)
    plot.legend(frameon=False, fontsize=8)
    out.write_bytes(figure_bytes(figure))


def presets_table(rows: list[dict[str, str]]) -> list[str]:
    """Return a table of the presets and the config's default as means over the releases, or "not measured"."""
    default = SamplingConfig()
    lines = [("for", "sampler", "steps", "LR", "FD", "precision", "recall", "releases")]
    for name, manner in {"(default)": Manner(default.sampler, default.steps), **PURPOSES}.items():
        found = [row for row in rows if (row["sampler"], row["steps"]) == (manner.sampler, str(manner.steps))]
        scores = ("logistic", "fd", "precision", "recall")
        means = [f"{mean(float(row[score]) for row in found):.2f}" for score in scores] if found else []
        shown = (*means, str(len(found))) if found else ("not measured",)
        lines.append((name, manner.sampler, str(manner.steps), *shown))
    return ["".join(cell.ljust(12) for cell in line).rstrip() for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", type=Path, help="release folders of digits runs")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    table = RESULTS / "sampling_quality.csv"
    fresh = not table.exists()
    done = {(row["release"], row["sampler"], int(row["steps"])) for row in read_rows(table)}
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        for folder in asked.releases:
            released = read_released(folder)
            real = load_set("digits", released, "test")
            network = train_features(load_set("digits", released, "train"), torch.device("cpu"))
            net, sigma_data = load_pipeline(folder)
            name = released.identity()["certificate_sha256"][:12]
            for sampler, counts in STEPS.items():
                for steps in counts:
                    if (name, sampler, steps) not in done:
                        row = measured(net, sigma_data, sampler, steps, real, network)
                        writer.writerow({"release": name, **row})
                        file.flush()
                        print(row, flush=True)
    rows = read_rows(table)
    print("\n".join(presets_table(rows)))
    draw_curves(rows, "fd", "FD to held-out digits", RESULTS / "sampling_quality_fd.png")
    draw_curves(rows, "logistic", "logistic regression, %", RESULTS / "sampling_quality_lr.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
