"""A data set with a budget, run folders on it, and plans that take a part of it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.ledger.dataset_ledger import DatasetLedger
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.renyi_filter import RenyiFilter
from curriculumdp.privacy.secret import RunSecret

DELTA, BUDGET = 1e-5, 2.0
CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 2.0, 200)
PLAN = (CENTRAL, PRIVATE)
DATA = [np.arange(12, dtype=np.uint8), np.array([0, 1])]
FINGERPRINT = {"threads": 1}
NONCE = "5e" * 32


def anything(_: Sequence[PrivacyEvent]) -> bool:
    return True


class Place:
    """A data set's folder with a budget, and run folders on it."""

    def __init__(self, root: Path, **definition: object) -> None:
        self.root = root
        self.definition = {"unit": "patient", "delta": DELTA, "units": 1437, "budget": BUDGET} | definition

    def made(self) -> "Place":
        """The same place, with the ledger that an operator makes there."""
        DatasetLedger.create(self.root / "state", self.definition)
        return self

    def shared(self, **changes: Any) -> DatasetLedger:
        return DatasetLedger.open(self.root / "state", self.definition | changes)

    def begin(self, number: int, plan: Sequence[PrivacyEvent] = PLAN, allowance: Any = anything) -> Ledger:
        run = self.root / f"run{number}"
        run.mkdir()
        record = {"events": [asdict(event) for event in plan]}
        ledger = Ledger.create(run, secret(number), record, DATA, allowance)
        self.shared().attach(ledger, 1.0, DATA)
        ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def resume(self, number: int, data: Any = DATA, allowance: Any = anything) -> Ledger:
        ledger = Ledger.open(self.root / f"run{number}", secret(number), {}, data, allowance)
        self.shared().attach(ledger, 1.0, data)
        if data is not None:
            ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def share(self) -> float:
        left = self.shared().share_left()
        assert left is not None
        return 1 - left


def secret(number: int) -> RunSecret:
    return RunSecret.from_bytes(bytes([number]) * 32)


def charge(ledger: Ledger, step: int, event: PrivacyEvent = PRIVATE) -> bytes:
    return ledger.charge(
        event.name,
        step,
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        clip_norm=1.0,
        total=np.arange(5, dtype=np.int64) + step,
    )


def filling(share: float, budget: float = BUDGET) -> PrivacyEvent:
    """A plan of one row that takes about this part of the budget."""
    of_one = RenyiFilter(budget, DELTA).share([replace(PRIVATE, count=1)])
    return replace(PRIVATE, count=round(share / of_one))
