"""How often each planned kind of event was charged, and whether one more fits the plan or the budget."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from curriculumdp.ledger.chain import LedgerError
from curriculumdp.privacy.event import MAX_COUNT, PrivacyEvent

# Beyond the plan, the accountant (a second per call) is asked for this many more events at once, then for fewer.
AHEAD = 64, 8, 1

Allowance = Callable[[Sequence[PrivacyEvent]], bool]


class BudgetSpent(LedgerError):
    """The next event would exceed ε: it was not charged, and training must stop."""


def no_allowance(_: Sequence[PrivacyEvent]) -> bool:
    """Refuse everything beyond the plan."""
    return False


class Spending:
    """Counts per row; a row is a planned PrivacyEvent with its count set to 0.

    Within the plan, the order of events and the point where they stop may depend on what was released: each is
    dominated by its own pair of distributions, their losses add up to the same in any order, and fewer cost less.
    Beyond it (a query repeated after a crash) rows are traded for others, and the cost of the final counts is the
    run's as long as crashes are independent of outputs. Nobody may crash a run because of what it has output.
    """

    def __init__(self, planned: Sequence[PrivacyEvent], allowance: Allowance) -> None:
        self.planned, self._allowance = list(planned), allowance
        self._bound: dict[PrivacyEvent, int] = {}
        for event in planned:
            row = replace(event, count=0)
            self._bound[row] = self._bound.get(row, 0) + event.count
        self._counts: dict[PrivacyEvent, int] = {}
        self.clip_norms: dict[str, float] = {}

    def take_clip_norm(self, phase: str, clip_norm: float) -> None:
        """Record the clip norm of a phase's first event. Raises LedgerError if a later event has another one."""
        first = self.clip_norms.setdefault(phase, clip_norm)
        if clip_norm != first:
            raise LedgerError(f"phase {phase}: clip_norm is {clip_norm!r}, but {first!r} was charged before")

    def row(self, phase: str, sample_rate: float, noise_multiplier: float) -> PrivacyEvent:
        """Return the planned row of an event. Raises LedgerError naming the field if nothing like it was planned."""
        rows = [row for row in self._bound if row.name == phase]
        for row in rows:
            if (row.sample_rate, row.noise_multiplier) == (sample_rate, noise_multiplier):
                return row
        if not rows:
            raise LedgerError(f"phase {phase}: no phase of that name was planned")
        field = "sample_rate" if rows[0].sample_rate != sample_rate else "noise_multiplier"
        now = sample_rate if field == "sample_rate" else noise_multiplier
        raise LedgerError(f"phase {phase}: {field} is {now!r} but was planned as {getattr(rows[0], field)!r}")

    def admit(self, row: PrivacyEvent, reserve: Allowance) -> None:
        """Raise BudgetSpent unless one more of `row` is within the plan or allowed.

        As long as no row exceeds its bound, which starts as the plan, `allowance` is not asked: the plan as a whole
        was solved to stay within ε. A new bound must be within ε and then granted by `reserve`, since it counts
        against other runs too. It keeps everything in the old bound that is still to come; where that and one more
        do not fit together, the fewest unused counts are given up, those of the last rows first.
        """
        counts = self._counts | {row: self._counts.get(row, 0) + 1}
        if self._is_within_bound(counts):
            return
        kept = {known: max(limit, self._counts.get(known, 0)) for known, limit in self._bound.items()}
        for limit in dict.fromkeys(max(kept[row], self._counts.get(row, 0) + ahead) for ahead in AHEAD):
            wider = kept | {row: limit}
            if limit > MAX_COUNT:  # a PrivacyEvent cannot count that many
                continue
            if self._allowance(_listed(wider)) and reserve(_listed(wider)):
                self._bound = wider
                return
        if counts[row] > MAX_COUNT or not self._trade(counts, kept, reserve):
            raise BudgetSpent(f"phase {row.name}: one more event would exceed the privacy budget")

    def _trade(
        self, counts: dict[PrivacyEvent, int], kept: dict[PrivacyEvent, int], reserve: Allowance
    ) -> bool:
        """Make `counts`, plus as much of the unused rest of `kept` as fits, the bound; return whether that worked.

        Giving up n counts asks the accountant 2·log₂(n) times, a second each. This happens once per query that is
        repeated while a later row is still to come.
        """
        unused = sum(max(0, limit - counts.get(row, 0)) for row, limit in kept.items())

        def without(cut: int) -> list[PrivacyEvent]:
            return _listed(_cut(counts, kept, unused - cut))

        within = _fewest(1, unused, lambda cut: self._allowance(without(cut)))
        # A granted reservation is in force, and the last one granted here gives up the fewest.
        cut = within and _fewest(within, unused, lambda cut: reserve(without(cut)))
        if cut:
            self._bound = _cut(counts, kept, unused - cut)
        return bool(cut)

    def bind(self, reserved: Sequence[PrivacyEvent]) -> bool:
        """Make `reserved` the run's bound if it covers everything counted; return whether it does."""
        bound = dict.fromkeys(self._bound, 0)
        for event in reserved:
            row = replace(event, count=0)
            bound[row] = bound.get(row, 0) + event.count
        covered = all(count <= bound.get(row, 0) for row, count in self._counts.items())
        if covered:
            self._bound = bound
        return covered

    def granted(self) -> list[PrivacyEvent]:
        """Return what may be reached without asking: the bound, or the counts where they exceed it."""
        return _listed(self._bound if self._is_within_bound(self._counts) else self._counts)

    def _is_within_bound(self, counts: dict[PrivacyEvent, int]) -> bool:
        return all(count <= self._bound.get(row, 0) for row, count in counts.items())

    def add(self, row: PrivacyEvent) -> None:
        """Count one more of `row`."""
        self._counts[row] = self._counts.get(row, 0) + 1

    def events(self) -> list[PrivacyEvent]:
        """Return everything counted, in order of first use."""
        return _listed(self._counts)


def _listed(counts: dict[PrivacyEvent, int]) -> list[PrivacyEvent]:
    return [replace(row, count=count) for row, count in counts.items()]


def _cut(
    counts: dict[PrivacyEvent, int], kept: dict[PrivacyEvent, int], unused: int
) -> dict[PrivacyEvent, int]:
    """Return `counts` plus the first `unused` of what `kept` has beyond them, row by row."""
    bound = {}
    for row, limit in kept.items():
        more = min(unused, max(0, limit - counts.get(row, 0)))
        bound[row], unused = counts.get(row, 0) + more, unused - more
    return bound


def _fewest(low: int, top: int, fits: Callable[[int], bool]) -> int | None:
    """Return the smallest n in [low, top] for which `fits(n)`, which must be monotone; None if there is none."""
    high, step = low, 1
    while high <= top and not fits(high):
        if high == top:
            return None
        low, high, step = high + 1, min(high + step, top), 2 * step
    if high > top:
        return None
    return bisect_left(range(high), True, low, high, key=fits)
