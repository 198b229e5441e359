"""A whole run in half a second, what an observer of its noisy sums has seen, and how it may end."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from curriculumdp.config.config import Config
from curriculumdp.curriculum import run
from curriculumdp.curriculum.plan import Plan, PlannedPhase
from curriculumdp.privacy.accountant import ACCOUNTANT
from curriculumdp.privacy.event import PrivacyEvent
from tests.support.runs import accountants_asked_once, tiny

UNITS, CLASSES = 300, 3
EVENTS = 5  # of a small run: 2 queries, 3 steps
# This comes to ε = 0.5 of 3, so that redone steps have room; to solve for the limit takes ten seconds.
NOISE = 1.0


def data_file(place: Path) -> Path:
    """A small sensitive set as an npz file, so that a run keeps decoded images too."""
    rng = np.random.default_rng(0)
    labels = np.arange(UNITS) % CLASSES
    images = rng.integers(0, 90, (UNITS, 8, 8)) + 60 * labels[:, None, None]
    np.savez(place / "data.npz", images=images.astype(np.uint8), labels=labels)
    return place / "data.npz"


def small(run_dir: Path, data: Path, **changes: Any) -> Config:
    """A run of 2 queries, 1 warm-up step and 3 DP-SGD steps; its data set's ledger lies beside its folder."""
    values: dict[str, Any] = {
        "data": {
            "source": "npz",
            "path": str(data),
            "units": UNITS,
            "classes": CLASSES,
            "channels": 1,
            "size": 8,
            "name": "small",
            "ledger": str(run_dir.parent / "state"),
        },
        "central__queries": 2,
        "warmup__steps": 1,
        "private__steps": 3,
        "private__sample_rate": 0.02,
        "private__draws": 1,
        "model": {"channels": [8], "blocks": 1},
        "sampling": {"steps": 2, "per_class": 1},
    }
    return tiny(run_dir, **(values | changes))


def plan_without_solving(config: Config) -> Plan:
    """A plan of that config under NOISE; the certificate checks in the end that it keeps to the budget."""
    central, private = config.central, config.private
    assert central is not None
    assert config.warmup is not None
    mechanism: Any = "subsampled_gaussian"
    rows = (
        PlannedPhase(
            "central", mechanism, central.sample_rate, central.noise_multiplier, central.queries, 0, 0
        ),
        PlannedPhase("warmup", "post_processing", None, None, config.warmup.steps, 0, None),
        PlannedPhase("private", mechanism, private.sample_rate, NOISE, private.steps, 0, 0),
    )
    budget = config.privacy
    return Plan(rows, budget.epsilon, budget.delta, budget.epsilon, ACCOUNTANT)


def without_solving() -> AbstractContextManager[None]:
    """Accountants, the slowest part of a small run, are asked once for each question, and for no plan."""
    return accountants_asked_once(plan_without_solving)


class Observer:
    """Sees every noise key with its sum, in whichever process, and holds it against the ledger as it then is on disk.

    Who has a key can draw the noise: from then on the noisy sum counts as seen.

    `seen` is a file that survives the process: a line for each draw, with digests of key, sum and run folder.
    """

    def __init__(self, seen: Path) -> None:
        self.seen = seen
        seen.touch()

    def lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.seen.read_text().splitlines()]

    @contextmanager
    def watching(self, run_dir: Path) -> Iterator[None]:
        """Draws of runs in here are seen; AssertionError in the run itself if one was not charged before."""
        original = run.Run.charge

        def watched(run: run.Run, event: PrivacyEvent, step: int, clip_norm: float, total: Tensor) -> bytes:
            key = original(run, event, step, clip_norm, total)
            line = {"key": _digest(key), "sum": _digest(total.cpu().numpy().tobytes())}
            descriptor = os.open(self.seen, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, (json.dumps(line) + "\n").encode())
            os.close(descriptor)
            self.check(run_dir)
            return key

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(run.Run, "charge", watched)
            yield

    def check(self, run_dir: Path, earlier: list[dict[str, str]] | None = None) -> None:
        """Nothing that was seen (`earlier` too) is without its own ledger entry; no key met two sums."""
        seen = {(line["key"], line["sum"]) for line in [*(earlier or []), *self.lines()]}
        assert len({key for key, _ in seen}) == len(seen), "one noise key was used on two sums"
        assert len({total for _, total in seen}) == len(seen), "one sum was given out under two noises"
        charged = [line for line in ledger_lines(run_dir) if line["kind"] == "charge"]
        assert len(charged) >= len(seen), f"{len(seen)} noisy sums were seen, {len(charged)} were charged"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ledger_lines(run_dir: Path) -> list[dict[str, Any]]:
    """The bodies of the ledger's whole lines."""
    content = (run_dir / "private" / "ledger.jsonl").read_bytes()
    return [json.loads(line)["body"] for line in content.split(b"\n")[:-1]]
