"""python bench/study.py STUDY.yaml [--only NAME ...] [--minutes M] [--table]: run variants of a config and score them.

A study names a config, overrides shared by all runs, variants (more overrides), the number of runs per variant and how
they are scored. Every finished run appends one line to bench/results/STUDY.csv and is never repeated; an interrupted
run resumes where it stopped. Run r of a variant uses seed r and its own secret, so that a variant's runs differ in
everything random. Order: run 0 of all variants, then run 1, and so on. --table runs nothing and prints the means in the
CSV and their differences from the first variant.

Tuning looks at held-out images of the data set itself: studies are for PUBLIC data sets (the digits, Fashion-MNIST).
"""

import argparse
import csv
import hashlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import yaml  # noqa: E402
from scipy.stats import ttest_ind  # noqa: E402

from bench.baselines.non_private import train_without_privacy  # noqa: E402
from curriculumdp.config.changes import PATHS  # noqa: E402
from curriculumdp.config.config import Config, load_config  # noqa: E402
from curriculumdp.curriculum.state import module_tensors  # noqa: E402
from curriculumdp.curriculum.train import run_curriculum  # noqa: E402
from curriculumdp.data.sources import load_images  # noqa: E402
from curriculumdp.diffusion.denoiser import Denoiser  # noqa: E402
from curriculumdp.diffusion.loss import edm_loss  # noqa: E402
from curriculumdp.diffusion.networks import UNet2DModel  # noqa: E402
from curriculumdp.diffusion.pipeline import load_pipeline  # noqa: E402
from curriculumdp.evaluation.fidelity import FeatureNetwork, fidelity, train_features  # noqa: E402
from curriculumdp.evaluation.labelled import LabelledSet  # noqa: E402
from curriculumdp.evaluation.released import draw_from  # noqa: E402
from curriculumdp.evaluation.utility import CLASSIFIERS, accuracy  # noqa: E402
from curriculumdp.world import one_process  # noqa: E402

CPU = torch.device("cpu")
PRIVATE, NON_PRIVATE = "private", "non-private"
# How the work is done or named: changing these does not make another variant.
NOT_A_VARIANT = ("name", "run_dir", "seed", "compute", "checkpoint", "logging")
COLUMNS = [
    *("study", "variant", "replica", "trainer", "epsilon", "parameters", *CLASSIFIERS, "fd"),
    *("train_seconds", "train_cpu_seconds", "score_seconds", "threads", "torch", "date", "images", "sets"),
    *("overrides", "digest", "loss"),
]
# Noise levels of the held-out loss, from those that decide detail to those that decide class.
LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@dataclass(frozen=True)
class Variant:
    """A row of a study's table: overrides of its config, and its trainer."""

    name: str
    overrides: tuple[str, ...]
    trainer: str = PRIVATE


@dataclass(frozen=True)
class Study:
    """A study. Each run is scored on `sets` synthetic sets of `images` images; scores are averaged."""

    name: str
    config: Path
    common: tuple[str, ...]
    replicas: int
    images: int
    sets: int
    classifiers: tuple[str, ...]
    fd: bool
    variants: tuple[Variant, ...]

    def configured(self, variant: Variant, replica: int, threads: int, folder: Path) -> Config:
        """Return the config of one run in `folder`."""
        own = [f"seed={replica}", f"compute.threads={threads}", f"run_dir={folder}", "compute.device=cpu"]
        return load_config(self.config, [*self.common, *variant.overrides, *own])


def read_study(file: Path) -> Study:
    """Read a study from YAML; a variant is a list of overrides, or a mapping of overrides and trainer."""
    values = yaml.safe_load(file.read_text())
    variants = []
    for name, given in values.pop("variants").items():
        table = given if isinstance(given, dict) else {"overrides": given}
        overrides = tuple(table.get("overrides") or ())
        variants.append(Variant(str(name), overrides, table.get("trainer", PRIVATE)))
    return Study(
        name=file.stem,
        config=ROOT / values.pop("config"),
        common=tuple(values.pop("common", ())),
        classifiers=tuple(values.pop("classifiers")),
        variants=tuple(variants),
        **values,
    )


def digest_of(config: Config, trainer: str, study: Study) -> str:
    """Return a digest of what a line of the CSV measured: the settings that matter, the trainer and the scoring.

    Only settings that differ from their defaults count, so that a new option makes no line stale. When a default
    changes, the lines that relied on it must be removed by hand.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=set(NOT_A_VARIANT))
    settings["data"] = {key: value for key, value in settings["data"].items() if f"data.{key}" not in PATHS}
    text = json.dumps([settings, trainer, study.images, study.sets], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Judge:
    """The real held-out images, and the network whose features FD compares (None: no FD)."""

    real: LabelledSet
    compared: LabelledSet
    network: FeatureNetwork | None

    def scores(self, net: UNet2DModel, config: Config, study: Study) -> dict[str, float]:
        """Return the held-out loss and, averaged over synthetic sets, FD and each classifier's accuracy in percent."""
        sampling = config.sampling
        found: dict[str, list[float]] = {"loss": [held_out_loss(net, config.private.sigma_data, self.real)]}
        for seed in range(study.sets):
            drawn = draw_from(
                net,
                config.private.sigma_data,
                config.data.classes,
                sampler=sampling.sampler,
                steps=sampling.steps,
                count=study.images,
                seed=seed,
            )
            for name in study.classifiers:
                found.setdefault(name, []).append(100 * accuracy(name, drawn, self.real, seed))
            if self.network is not None:
                found.setdefault("fd", []).append(fidelity(self.network, self.compared, drawn)["fd"])
        return {name: round(sum(values) / len(values), 3) for name, values in found.items()}


@torch.no_grad()
def held_out_loss(net: UNet2DModel, sigma_data: float, real: LabelledSet) -> float:
    """Return the mean EDM loss over LEVELS on at most 1,000 real images, with the same noise for every network.

    Runs that differ only in their secret differ by 0.01 in this loss and by a point or two in accuracy.
    """
    some = real.at_most(1000)
    images, labels = torch.from_numpy(some.images).float() / 127.5 - 1, torch.from_numpy(some.labels)
    noise = torch.randn(len(LEVELS), *images.shape, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(net, sigma_data)
    losses = [
        edm_loss(denoiser, images, labels, torch.full((len(some),), level), normals).mean()
        for level, normals in zip(LEVELS, noise, strict=True)
    ]
    return float(torch.stack(losses).mean())


def open_judge(study: Study) -> Judge:
    """Load the data set's held-out images: the feature network trains on one half, FD compares with the other."""
    data = load_config(study.config).data
    found = load_images(
        source=data.source,
        path=data.path,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        split="test",
    )
    real = LabelledSet(found.images, found.labels, f"{data.source}, test split")
    learned, compared = real.halves()
    return Judge(real, compared, train_features(learned, CPU) if study.fd else None)


def trained(config: Config, trainer: str) -> UNet2DModel:
    """Train one run and return its network: that of its release, or the non-private reference."""
    if trainer == PRIVATE:
        outcome = run_curriculum(config, one_process())
        if outcome.release is None:
            print(outcome.summary())
            raise SystemExit(outcome.exit_code)
        return load_pipeline(outcome.release)[0]
    if trainer != NON_PRIVATE:
        raise SystemExit(f"trainer is {trainer!r}; it must be {PRIVATE!r} or {NON_PRIVATE!r}")
    state = train_without_privacy(config)
    state.net.load_state_dict(module_tensors(state.net, state.ema))
    return state.net.eval()


def measured(study: Study, variant: Variant, replica: int, config: Config, judge: Judge) -> dict[str, Any]:
    """Train and score one run; return its line of the CSV."""
    clock, cpu = time.perf_counter(), time.process_time()
    net = trained(config, variant.trainer)
    train_seconds, train_cpu = time.perf_counter() - clock, time.process_time() - cpu
    scores = judge.scores(net, config, study)
    return {
        "study": study.name,
        "variant": variant.name,
        "replica": replica,
        "trainer": variant.trainer,
        "epsilon": config.privacy.epsilon if variant.trainer == PRIVATE else "",
        "parameters": sum(p.numel() for p in net.parameters()),
        **scores,
        "train_seconds": round(train_seconds, 1),
        "train_cpu_seconds": round(train_cpu, 1),
        "score_seconds": round(time.perf_counter() - clock - train_seconds, 1),
        "threads": config.compute.threads,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "images": study.images,
        "sets": study.sets,
        "overrides": " ".join([*study.common, *variant.overrides]),
        "digest": digest_of(config, variant.trainer, study),
    }


def done(table: Path) -> set[tuple[str, int]]:
    """Return the (digest, run number) pairs that are already in the CSV."""
    if not table.exists():
        return set()
    with table.open() as file:
        return {(row["digest"], int(row["replica"])) for row in csv.DictReader(file)}


def summary(study: Study, table: Path) -> Iterator[str]:
    """Yield each variant's scores, mean ± standard deviation over its runs, and differences from the first variant.

    Differences come with 95 % intervals (Welch 1947: unequal variances), if both variants have at least two runs.
    """
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first: dict[str, list[float]] = {}
    for variant in study.variants:
        digest = digest_of(study.configured(variant, 0, 1, Path("unused")), variant.trainer, study)
        runs = [row for row in rows if row["digest"] == digest]
        yield f"{variant.name}: {len(runs)} runs"
        for name in (*study.classifiers, "fd", "loss", "train_cpu_seconds"):
            values = [float(row[name]) for row in runs if row[name]]
            base = first.setdefault(name, values)
            if not values:
                continue
            line = f"  {name:<18} {statistics.mean(values):8.3f}"
            if len(values) > 1:
                line += f" ± {statistics.stdev(values):.3f}"
            if base is not values and min(len(base), len(values)) > 1:
                low, high = ttest_ind(values, base, equal_var=False).confidence_interval()
                line += f"   difference {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}"
            yield line


def append(table: Path, row: dict[str, Any]) -> None:
    """Append one line, after a header if the file is new."""
    fresh = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def to_do(study: Study, only: list[str] | None) -> Iterator[tuple[int, Variant]]:
    """Yield the runs in order."""
    unknown = set(only or ()) - {variant.name for variant in study.variants}
    if unknown:
        raise SystemExit(
            f"--only: no variant {sorted(unknown)}; choose from {[v.name for v in study.variants]}"
        )
    for replica in range(study.replicas):
        for variant in study.variants:
            if not only or variant.name in only:
                yield replica, variant


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="study file, see bench/studies/")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="variants to run (default: all)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no run after this many minutes"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--table", action="store_true", help="print the results in the CSV and run nothing")
    parser.add_argument("--keep", action="store_true", help="keep the run folders in runs/studies/")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the CSV")
    asked = parser.parse_args()

    study, began = read_study(asked.study), time.perf_counter()
    torch.set_num_threads(asked.threads)
    table = asked.out / f"{study.name}.csv"
    if asked.table:
        if not table.is_file():
            raise SystemExit(f"{table} not found: run the study first, or give the CSV's folder with --out")
        print("\n".join(summary(study, table)))
        return 0
    judge = None
    for replica, variant in to_do(study, asked.only):
        folder = ROOT / "runs" / "studies" / study.name
        config = study.configured(variant, replica, asked.threads, folder)
        digest = digest_of(config, variant.trainer, study)
        if (digest, replica) in done(table):
            continue
        if time.perf_counter() - began > asked.minutes * 60:
            print("out of time: run the same command again to resume")
            return 0
        config = study.configured(variant, replica, asked.threads, folder / f"{digest}-{replica}")
        judge = judge or open_judge(study)
        row = measured(study, variant, replica, config, judge)
        append(table, row)
        print(
            {key: row.get(key) for key in ("variant", "replica", *study.classifiers, "fd", "train_seconds")}
        )
        if not asked.keep:
            shutil.rmtree(config.run_dir, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
