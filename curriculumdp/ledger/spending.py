"""How often each planned kind of event was charged; whether one more is within the plan or the budget."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from curriculumdp.ledger.chain import LedgerError
from curriculumdp.privacy.event import MAX_COUNT, PrivacyEvent

# Beyond the plan an accountant is asked for so many more events at once, then for fewer: it takes a second.
AHEAD = 64, 8, 1

Allowance = Callable[[Sequence[PrivacyEvent]], bool]


class BudgetSpent(LedgerError):
    """The next event would pass ε: nothing was charged, and training must end here."""


class Spending:
    """Counts by row, a planned PrivacyEvent whose count is left out of it (0).

    Within the plan, the order of events and where they end may depend on what was released: each is dominated
    by its own pair of distributions, their losses add up to the same in any order, and fewer cost less. Beyond
    it (a query done again after a crash) rows are traded for others, and the cost of the final counts is the
    run's as long as crashes know nothing of outputs. Nobody may crash a run because of what it has shown.
    """

    def __init__(self, planned: Sequence[PrivacyEvent], allowance: Allowance) -> None:
        self.planned, self._allowance = list(planned), allowance
        self._bound: dict[PrivacyEvent, int] = {}
        for event in planned:
            row = replace(event, count=0)
            self._bound[row] = self._bound.get(row, 0) + event.count
        self._counts: dict[PrivacyEvent, int] = {}

    def row(self, phase: str, sample_rate: float, noise_multiplier: float) -> PrivacyEvent:
        """The planned row of an event; LedgerError naming the field if nothing like it was planned."""
        rows = [row for row in self._bound if row.name == phase]
        for row in rows:
            if (row.sample_rate, row.noise_multiplier) == (sample_rate, noise_multiplier):
                return row
        if not rows:
            raise LedgerError(f"phase {phase}: nothing of that name was planned")
        field = "sample_rate" if rows[0].sample_rate != sample_rate else "noise_multiplier"
        now = sample_rate if field == "sample_rate" else noise_multiplier
        raise LedgerError(f"phase {phase}: {field} is {now!r} and was planned as {getattr(rows[0], field)!r}")

    def admit(self, row: PrivacyEvent, reserve: Allowance) -> None:
        """Raises BudgetSpent unless one more of `row` is within the plan or allowed.

        As long as no row passes its bound, which begins as the plan, nobody is asked: the plan as a whole was
        solved to be within ε. A new bound must be within ε and then `reserve`d, for it counts against other runs
        too. It keeps all that is still to come of the bound before; where that and one more do not fit together,
        the fewest unused counts are given up, those of the last rows first.
        """
        counts = self._counts | {row: self._counts.get(row, 0) + 1}
        if self._is_within_bound(counts):
            return
        kept = {known: max(most, self._counts.get(known, 0)) for known, most in self._bound.items()}
        for most in dict.fromkeys(max(kept[row], self._counts.get(row, 0) + ahead) for ahead in AHEAD):
            wider = kept | {row: most}
            if most > MAX_COUNT:  # more than a PrivacyEvent counts
                continue
            if self._allowance(_listed(wider)) and reserve(_listed(wider)):
                self._bound = wider
                return
        if counts[row] > MAX_COUNT or not self._trade(counts, kept, reserve):
            raise BudgetSpent(f"phase {row.name}: one more event would pass the privacy budget")

    def _trade(
        self, counts: dict[PrivacyEvent, int], kept: dict[PrivacyEvent, int], reserve: Allowance
    ) -> bool:
        """Whether `counts` with as much as fits of what is unused in `kept` became the bound.

        For a cut of n counts the accountant is asked 2·log₂(n) times, a second each: this happens once for each
        query that is done again while a later row is still to come.
        """
        unused = sum(max(0, most - counts.get(row, 0)) for row, most in kept.items())

        def without(cut: int) -> list[PrivacyEvent]:
            return _listed(_cut(counts, kept, unused - cut))

        within = _fewest(1, unused, lambda cut: self._allowance(without(cut)))
        # A reservation that is granted is in force: the last one that is granted here is of the fewest.
        cut = within and _fewest(within, unused, lambda cut: reserve(without(cut)))
        if cut:
            self._bound = _cut(counts, kept, unused - cut)
        return bool(cut)

    def bind(self, reserved: Sequence[PrivacyEvent]) -> bool:
        """Whether what is `reserved` for the run covers what was counted, and is its bound from now on."""
        bound = dict.fromkeys(self._bound, 0)
        for event in reserved:
            row = replace(event, count=0)
            bound[row] = bound.get(row, 0) + event.count
        covered = all(count <= bound.get(row, 0) for row, count in self._counts.items())
        if covered:
            self._bound = bound
        return covered

    def granted(self) -> list[PrivacyEvent]:
        """What may be reached without asking: the bound, or what was counted where that has passed it."""
        return _listed(self._bound if self._is_within_bound(self._counts) else self._counts)

    def _is_within_bound(self, counts: dict[PrivacyEvent, int]) -> bool:
        return all(count <= self._bound.get(row, 0) for row, count in counts.items())

    def add(self, row: PrivacyEvent) -> None:
        """Counts one more of `row`."""
        self._counts[row] = self._counts.get(row, 0) + 1

    def events(self) -> list[PrivacyEvent]:
        """All that was counted, in the order of first use."""
        return _listed(self._counts)


def _listed(counts: dict[PrivacyEvent, int]) -> list[PrivacyEvent]:
    return [replace(row, count=count) for row, count in counts.items()]


def _cut(
    counts: dict[PrivacyEvent, int], kept: dict[PrivacyEvent, int], unused: int
) -> dict[PrivacyEvent, int]:
    """`counts`, and of what `kept` has beyond them the first `unused`, row by row."""
    bound = {}
    for row, most in kept.items():
        more = min(unused, max(0, most - counts.get(row, 0)))
        bound[row], unused = counts.get(row, 0) + more, unused - more
    return bound


def _fewest(low: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number in [low, most] that `fits`, which all above it do too; None without one."""
    high, step = low, 1
    while high <= most and not fits(high):
        if high == most:
            return None
        low, high, step = high + 1, min(high + step, most), 2 * step
    if high > most:
        return None
    return bisect_left(range(high), True, low, high, key=fits)
