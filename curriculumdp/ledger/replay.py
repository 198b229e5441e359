"""Which steps of an incarnation are already charged.

A step that the ledger holds is replayed under the nonce it was charged under, and charged once. All others are
drawn under the nonce of the process that does them: two copies of a run folder, whatever the arithmetic of the
machines that resume them, share what both ledgers hold and not one row more.

A process charges a phase's steps consecutively, so a few stretches describe a million of them.
"""

from dataclasses import dataclass


@dataclass
class Stretch:
    """`count` consecutive steps of a phase, from `first`, in consecutive ledger entries from index `entry`.

    nonce: the nonce they were drawn under, hex.
    """

    phase: str
    first: int
    count: int
    nonce: str
    entry: int

    def holds(self, phase: str, step: int) -> bool:
        """Return whether the stretch contains this step of this phase."""
        return self.phase == phase and 0 <= step - self.first < self.count

    def entry_of(self, step: int) -> int:
        """Return the index of the ledger entry that charged `step`."""
        return self.entry + step - self.first


class ChargedSteps:
    """The charged steps of one incarnation, as stretches in the order they were charged."""

    def __init__(self, stretches: list[Stretch] | None = None) -> None:
        self.stretches = stretches or []

    def add(self, phase: str, step: int, nonce: str, entry: int) -> None:
        """Record that the entry at index `entry` charged a step drawn under `nonce`."""
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
        """Return the stretch that holds a step, or None if the step is not charged."""
        return next((part for part in reversed(self.stretches) if part.holds(phase, step)), None)

    def from_step(self, phase: str, step: int) -> int:
        """Return how many of this phase's steps are charged from `step` on."""
        return len(
            {
                held
                for part in self.stretches
                if part.phase == phase
                for held in range(max(step, part.first), part.first + part.count)
            }
        )
