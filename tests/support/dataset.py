"""A named data set's folder, and run folders on it."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.ledger.dataset_ledger import DatasetLedger
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.secret import RunSecret

CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.5, 20)
PLAN = {"events": [asdict(CENTRAL), asdict(PRIVATE)]}
DATA = [np.arange(12, dtype=np.uint8), np.array([0, 1])]
FINGERPRINT = {"threads": 1}
NONCE = "5e" * 32
DEFINITION = {"unit": "patient", "delta": 1e-5, "units": 1437}


def secret(number: int) -> RunSecret:
    return RunSecret.from_bytes(bytes([number]) * 32)


class Place:
    """A data set's folder and run folders on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "state"

    def shared(self, **changes: Any) -> DatasetLedger:
        return DatasetLedger.open(self.folder, DEFINITION | changes)

    def begin(self, number: int, allowance: Callable[..., bool] = lambda _: False) -> Ledger:
        """A new run, attached."""
        run = self.root / f"run{number}"
        run.mkdir()
        ledger = Ledger.create(run, secret(number), PLAN, DATA, allowance)
        assert self.shared().attach(ledger, 8.0, DATA) == []
        ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def resume(
        self, number: int, name: str | None = None, allowance: Callable[..., bool] = lambda _: False
    ) -> Ledger:
        """A run that goes on, in its own folder or in the one named."""
        ledger = Ledger.open(self.root / (name or f"run{number}"), secret(number), {}, DATA, allowance)
        self.shared().attach(ledger, 8.0, DATA)
        ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def copy(self, number: int, name: str) -> None:
        shutil.copytree(self.root / f"run{number}", self.root / name)


def charge(ledger: Ledger, step: int, event: PrivacyEvent = PRIVATE) -> bytes:
    return ledger.charge(
        event.name,
        step,
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        clip_norm=1.0,
        total=np.arange(5, dtype=np.int64) + step,
    )
