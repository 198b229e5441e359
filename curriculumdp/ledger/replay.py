"""Which steps of an incarnation are charged already: done again they are replays, under the nonce of then.

A process charges a phase's steps one after another, so a few stretches describe a million of them.
"""

from dataclasses import dataclass


@dataclass
class Stretch:
    """`count` consecutive steps of a phase, from `first`, in consecutive ledger entries from index `entry`.

    nonce: the one they were drawn under, hex.
    """

    phase: str
    first: int
    count: int
    nonce: str
    entry: int

    def holds(self, phase: str, step: int) -> bool:
        return self.phase == phase and 0 <= step - self.first < self.count

    def entry_of(self, step: int) -> int:
        """The index of the ledger entry that charged `step`."""
        return self.entry + step - self.first


class ChargedSteps:
    """The charged steps of one incarnation, the latest stretch last."""

    def __init__(self, stretches: list[Stretch] | None = None) -> None:
        self.stretches = stretches or []

    def add(self, phase: str, step: int, nonce: str, entry: int) -> None:
        """Record that entry number `entry` charged a step drawn under `nonce`."""
        last = self.stretches[-1] if self.stretches else None
        if (
            last is not None
            and (last.phase, last.nonce) == (phase, nonce)
            and (last.first + last.count, last.entry + last.count) == (step, entry)
        ):
            last.count += 1
        else:
            self.stretches.append(Stretch(phase, step, 1, nonce, entry))

    def find(self, phase: str, step: int) -> Stretch | None:
        """Return the stretch that holds a step, or None for one that is not charged."""
        return next((part for part in reversed(self.stretches) if part.holds(phase, step)), None)
