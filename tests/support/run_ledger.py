"""A run's ledger of a small plan, created, resumed and charged."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.secret import RunSecret

RAW = bytes(range(32))
CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.5, 20)
PLAN = {"events": [asdict(CENTRAL), asdict(PRIVATE)], "parameters": 40, "delta": 1e-5, "config": "ab12"}
FACTS = {"parameters": 40, "delta": 1e-5, "config": "ab12"}
DATA = [np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4), np.array([0, 1, 1]), np.array([0, 1, 2])]
FINGERPRINT = {"threads": 1, "torch": "2.13"}
NONCE = "5e" * 32


def secret() -> RunSecret:
    return RunSecret.from_bytes(RAW)


def create(folder: Path, allowance: Callable[[Sequence[PrivacyEvent]], bool] = lambda _: False) -> Ledger:
    folder.mkdir(exist_ok=True, parents=True)
    secret().save(folder / "secret")
    ledger = Ledger.create(folder, secret(), PLAN, DATA, allowance)
    ledger.begin(FINGERPRINT, NONCE)
    return ledger


def reopen(folder: Path, **changes: Any) -> Ledger:
    given = {"secret": secret(), "facts": FACTS, "data": DATA} | changes
    return Ledger.open(folder, **given)


def resume(folder: Path, **changes: Any) -> Ledger:
    ledger = reopen(folder, **changes)
    ledger.begin(FINGERPRINT, NONCE)
    return ledger


def a_sum(step: int) -> np.ndarray:
    return np.arange(40, dtype=np.int64) * (step + 1) - 2**40


def charge(
    ledger: Ledger, step: int, event: PrivacyEvent = PRIVATE, total: np.ndarray | None = None, **changes: Any
) -> bytes:
    given: dict[str, Any] = {
        "sample_rate": event.sample_rate,
        "noise_multiplier": event.noise_multiplier,
        "clip_norm": 1.0,
        "total": a_sum(step) if total is None else total,
    }
    return ledger.charge(event.name, step, **(given | changes))


def counts(ledger: Ledger) -> dict[str, int]:
    return {event.name: event.count for event in ledger.events()}
