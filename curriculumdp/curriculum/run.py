"""One run as its phases see it: the keys of its draws, and the one way to spend."""

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
    """A replayed sum was not the recorded one: its step must be done again under new keys, and charged."""


class OutOfBudget(Exception):
    """The next event would pass ε: the run ends here."""


@dataclass
class Run:
    """One run as its phases see it. PRIVATE: it holds the images, the secret and (on rank 0) the ledger.

    incarnation: the MAC of its ledger entry, not its number, which a copy of the run folder would share. nonce: this
    process's. replayed: the steps that were charged before this process began, each under the nonce of then.
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
        """Begin this process's part of the run, under a fresh nonce of rank 0 for what is not charged yet.

        `nonce` is for tests that need one in two processes.
        """

        def begun() -> bytes:
            assert self.ledger is not None
            self.ledger.begin(fingerprint, nonce or secrets.token_hex(32))
            return self._keys()

        self._take_keys(self.world.from_main(begun))

    def begin_incarnation(self, fingerprint: dict[str, Any], why: str) -> None:
        """Throw all keys away: what was charged is not replayed, and is charged again where it is done again."""

        def begun() -> bytes:
            assert self.ledger is not None
            self.ledger.new_incarnation(fingerprint, why)
            return self._keys()

        self._take_keys(self.world.from_main(begun))

    def _keys(self) -> bytes:
        """What all ranks derive keys from, beside the secret."""
        ledger = self.ledger
        assert ledger is not None
        stretches = [astuple(stretch) for stretch in ledger.charged.stretches]
        return json.dumps([ledger.incarnation_mac, ledger.nonce, stretches]).encode()

    def _take_keys(self, keys: bytes) -> None:
        self.incarnation, self.nonce, stretches = json.loads(keys)
        self.replayed = ChargedSteps([Stretch(*stretch) for stretch in stretches])

    def nonce_of(self, phase: str, step: int) -> str:
        """The nonce of a step: that of the process that charged it, or this one's where nobody has."""
        charged = self.replayed.find(phase, step)
        return self.nonce if charged is None else charged.nonce

    def rows_key(self, phase: str, step: int) -> bytes:
        """The key of a step's Poisson sample."""
        nonce = self.nonce_of(phase, step)
        return self.secret.key("rows", incarnation=self.incarnation, nonce=nonce, phase=phase, step=step)

    def draws_key(self, phase: str, step: int) -> bytes:
        """The key of the draws that belong to single units in a step; the step itself is the draws' counter."""
        nonce = self.nonce_of(phase, step)
        return self.secret.key("draws", incarnation=self.incarnation, nonce=nonce, phase=phase)

    def charge(self, event: PrivacyEvent, step: int, clip_norm: float, total: Tensor) -> bytes:
        """The key of one step's or query's noise: reduce, ledger entry, verdict (D3.4, D4). PRIVATE.

        `total` int64 [P] is this rank's share of the un-noised sum on the grid; it becomes the sum over the ranks, in
        place. No rank can derive the noise before the entry is on rank 0's disk, because its key is made from the
        entry. Raises FreshIncarnation or OutOfBudget, where there is no key and the sum must be thrown away.
        """
        self.world.sum_(total)
        verdict = self.world.from_main(lambda: self._charge(event, step, clip_norm, total))
        if verdict == b"mismatch":
            raise FreshIncarnation(event.name)
        if verdict == b"budget":
            raise OutOfBudget(event.name)
        return verdict

    def noisy_sum(self, event: PrivacyEvent, step: int, clip_norm: float, mine: Tensor) -> Tensor:
        """The noisy sum of one step or query, int64 [P]: charged first, noise after (D3.4, D4, D3.5).

        `mine` is this rank's share of the un-noised sum on the grid (PRIVATE); it is left as it is.
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
    """One phase of the curriculum. It spends only through `Run.charge`, what its plan's row declares."""

    name: str
    steps: int

    def begin(self, run: Run, state: State) -> None:
        """Called before the phase's first step, and not on resume."""

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        """Does one step and returns its PRIVATE figures; `state.step` is advanced by the caller."""

    def sync(self, run: Run, state: State) -> None:
        """Makes every rank's state rank 0's; called before a checkpoint and at the phase's end."""
