"""One run as its phases see it: the keys of its draws, and the only way to spend ε."""

import json
import secrets
import threading
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from curriculumdp.config.config import Config
from curriculumdp.curriculum.plan import Plan
from curriculumdp.curriculum.state import State
from curriculumdp.data.images import ImageSet
from curriculumdp.ledger.replay import ChargedSteps, Stretch
from curriculumdp.ledger.run_ledger import BudgetSpent, Ledger, ReplayMismatch
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.grid_noise import add_noise
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World


class FreshIncarnation(Exception):
    """A replayed sum differs from the recorded one: its step must be redone under new keys, and charged."""


class Interrupted(Exception):
    """A step stopped halfway because the run should stop. What it has released is in the state; it will be redone."""


class OutOfBudget(Exception):
    """The next event would exceed the budget ε: the run ends here."""


@dataclass
class Run:
    """One run as its phases see it. PRIVATE: it holds the images, the secret and (on rank 0) the ledger.

    incarnation: the MAC of its ledger entry, not its number, which a copy of the run folder would share. nonce: this
    process's. replayed: the steps charged before this process started, each with the nonce it was charged under.
    stopping: set when the run should save and stop.
    """

    config: Config
    plan: Plan
    world: World
    secret: RunSecret
    images: ImageSet
    ledger: Ledger | None = None
    incarnation: str = ""
    nonce: str = ""
    replayed: ChargedSteps = field(default_factory=ChargedSteps)
    stopping: threading.Event = field(default_factory=threading.Event)

    def begin(self, fingerprint: dict[str, Any], nonce: str | None = None) -> None:
        """Enter this process in the ledger, under a fresh nonce of rank 0 for steps that are not charged yet.

        `nonce` is for tests that need the same one in two processes.
        """

        def append_entry() -> bytes:
            assert self.ledger is not None
            self.ledger.begin(fingerprint, nonce or secrets.token_hex(32))
            return self._keys()

        self._take_keys(self.world.from_main(append_entry))

    def begin_incarnation(self, fingerprint: dict[str, Any], why: str) -> None:
        """Discard all keys: charged steps are no longer replayed, and are charged again if they are repeated."""

        def append_entry() -> bytes:
            assert self.ledger is not None
            self.ledger.new_incarnation(fingerprint, why)
            return self._keys()

        self._take_keys(self.world.from_main(append_entry))

    def _keys(self) -> bytes:
        """Return what all ranks derive keys from, besides the secret."""
        ledger = self.ledger
        assert ledger is not None
        stretches = [astuple(stretch) for stretch in ledger.charged.stretches]
        return json.dumps([ledger.incarnation_mac, ledger.nonce, stretches]).encode()

    def _take_keys(self, keys: bytes) -> None:
        self.incarnation, self.nonce, stretches = json.loads(keys)
        self.replayed = ChargedSteps([Stretch(*stretch) for stretch in stretches])

    def nonce_of(self, phase: str, step: int) -> str:
        """Return the nonce of a step: that of the process that charged it, or this process's if none has."""
        charged = self.replayed.find(phase, step)
        return self.nonce if charged is None else charged.nonce

    def rows_key(self, phase: str, step: int) -> bytes:
        """Return the key of a step's Poisson sample."""
        nonce = self.nonce_of(phase, step)
        return self.secret.key("rows", incarnation=self.incarnation, nonce=nonce, phase=phase, step=step)

    def draws_key(self, phase: str, step: int) -> bytes:
        """Return the key of the draws that belong to single units; it omits the step, which is the draws' counter."""
        nonce = self.nonce_of(phase, step)
        return self.secret.key("draws", incarnation=self.incarnation, nonce=nonce, phase=phase)

    def charge(self, event: PrivacyEvent, step: int, clip_norm: float, total: Tensor) -> bytes:
        """Sum `total` over the ranks, charge it in the ledger, and return the key of its noise (D3.4, D4). PRIVATE.

        total: this rank's part of a step's or query's sum before noise, on the grid, int64 [P]; overwritten by the sum
        over the ranks. No rank can derive the noise before the entry is on rank 0's disk, because the key is derived
        from the entry. Raises FreshIncarnation or OutOfBudget; then there is no key, and the sum must be discarded.
        """
        self.world.sum_(total)
        verdict = self.world.from_main(lambda: self._charge(event, step, clip_norm, total))
        if verdict == b"mismatch":
            raise FreshIncarnation(event.name)
        if verdict == b"budget":
            raise OutOfBudget(event.name)
        return verdict

    def noisy_sum(self, event: PrivacyEvent, step: int, clip_norm: float, mine: Tensor) -> Tensor:
        """Charge one step or query, then add its noise; return the noisy sum, int64 [P] (D3.4, D4, D3.5).

        mine: this rank's part of the sum before noise, on the grid (PRIVATE); it is not modified.
        """
        total = mine.clone()
        key = self.charge(event, step, clip_norm, total)
        return add_noise(total, event.noise_multiplier, key)

    def _charge(self, event: PrivacyEvent, step: int, clip_norm: float, total: Tensor) -> bytes:
        assert self.ledger is not None
        try:
            entry = self.ledger.charge(
                event.name,
                step,
                sample_rate=event.sample_rate,
                noise_multiplier=event.noise_multiplier,
                clip_norm=clip_norm,
                total=np.ascontiguousarray(total.cpu().numpy()),
            )
        except ReplayMismatch:
            return b"mismatch"
        except BudgetSpent:
            return b"budget"
        nonce = self.nonce_of(event.name, step)
        return self.secret.key("noise", incarnation=self.incarnation, nonce=nonce, entry=entry.hex())


class Phase(Protocol):
    """One phase of the curriculum. It spends only through `Run.charge`, and only what its row of the plan declares."""

    name: str
    steps: int

    def begin(self, run: Run, state: State) -> None:
        """Prepare `state` before the phase's first step; not called on resume within the phase."""

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        """Do one step and return its PRIVATE metrics; the caller advances `state.step`."""

    def rehearse(self, run: Run, state: State) -> str | None:
        """Do a step on the dummy images of `run` (see `dry_step`); return what is wrong and what to change, or None."""

    def sync(self, run: Run, state: State) -> None:
        """Ensure that every rank has rank 0's state; called before a checkpoint and at the end of the phase."""
