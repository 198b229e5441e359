"""A run's folder made by hand: a tiny release, private files full of marks that must never leave, sets of images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.data.sources import load_images
from curriculumdp.evaluation.classifiers import SMALL
from curriculumdp.evaluation.labelled import LabelledSet
from tests.support.tiny_release import CONFIG, write_release

MARK = "must-not-leave"
CLASSES = 3  # the tiny release's
QUICK = replace(SMALL, epochs=1, steps=60, batch=32)
SETTINGS: dict[str, Any] = {
    **CONFIG,
    "curriculum": ["central", "warmup", "private"],
    "data": {**CONFIG["data"], "window": None},
    "model": {"channels": [8, 16], "blocks": 1},
    "warmup": {"steps": 20, "batch": 8},
    "private": {**CONFIG["private"], "draws": 2},
    "sampling": {"sampler": "dpm", "steps": 2, "per_class": 2},
}


def write_run(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """runs/NAME of a finished run; `changes` go to the release."""
    folder.mkdir(parents=True)
    write_release(folder / "release", config=config or SETTINGS, **changes)
    write_private(folder / "private")
    return folder


def write_private(private: Path, loss: float = 0.7654321) -> None:
    """What lies beside a release: 20 warm-up steps of a second, then 10 steps of two, with a night between them."""
    private.mkdir(mode=0o700)
    (private / "config.json").write_text(json.dumps({"data": {"path": f"/{MARK}"}}))
    (private / "ledger.jsonl").write_text(f'{{"mac": "{MARK}"}}\n')
    rows = [
        {"time": float(i), "phase": "warmup", "step": i, "epsilon": 1.0, "loss": 1 / (i + 1)}
        for i in range(20)
    ]
    rows += [
        {"time": 30_000.0 + 2 * i, "phase": "private", "step": i, "epsilon": 6.0, "loss": loss, "norm": 1.5 + i,
         "units": 40.0 + i, "excluded": 0.0}
        for i in range(10)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (private / "metrics.jsonl").write_text(text + '{"time": 1, "pha')  # torn by a crash


def digits(split: str, classes: int = 10) -> LabelledSet:
    """scikit-learn's digits of the first `classes` classes."""
    units = 1437 if split == "train" else None
    found = load_images(source="digits", units=units, classes=10, channels=1, size=8, split=split)  # type: ignore[arg-type]
    kept = found.labels < classes
    return LabelledSet(found.images[kept], found.labels[kept], f"digits, {split} split")


def write_npz(path: Path, images: LabelledSet) -> str:
    """The name of a set for the commands, npz:PATH."""
    np.savez(path, images=images.images, labels=images.labels)
    return f"npz:{path}"
