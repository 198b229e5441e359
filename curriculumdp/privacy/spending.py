"""How often each planned kind of release was charged; whether one more is within the plan or the budget."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from curriculumdp.privacy.chain import LedgerError
from curriculumdp.privacy.release import MAX_COUNT, Release

# Beyond the plan an accountant is asked for so many more releases at once, then for fewer: it takes a second.
AHEAD = 64, 8, 1

Allowance = Callable[[Sequence[Release]], bool]


class BudgetSpent(LedgerError):
    """The next release would pass ε: nothing was charged, and training must end here."""


class Spending:
    """Counts by row, a planned Release whose count is left out of it (0).

    Within the plan, the order of releases and where they end may depend on what was released: each is dominated
    by its own pair of distributions, their losses add up to the same in any order, and fewer cost less. Beyond
    it (a query done again after a crash) rows are traded for others, and the cost of the final counts is the
    run's as long as crashes know nothing of outputs. Nobody may crash a run because of what it has shown.
    """

    def __init__(self, planned: Sequence[Release], allowance: Allowance) -> None:
        self.planned, self._allowance = list(planned), allowance
        self._bound: dict[Release, int] = {}
        for release in planned:
            row = replace(release, count=0)
            self._bound[row] = self._bound.get(row, 0) + release.count
        self._counts: dict[Release, int] = {}

    def row(self, phase: str, sample_rate: float, noise_multiplier: float) -> Release:
        """The planned row of a release; LedgerError naming the field if nothing like it was planned."""
        rows = [row for row in self._bound if row.name == phase]
        for row in rows:
            if (row.sample_rate, row.noise_multiplier) == (sample_rate, noise_multiplier):
                return row
        if not rows:
            raise LedgerError(f"phase {phase}: nothing of that name was planned")
        field = "sample_rate" if rows[0].sample_rate != sample_rate else "noise_multiplier"
        now = sample_rate if field == "sample_rate" else noise_multiplier
        raise LedgerError(f"phase {phase}: {field} is {now!r} and was planned as {getattr(rows[0], field)!r}")

    def admit(self, row: Release, reserve: Allowance) -> None:
        """Raises BudgetSpent unless one more of `row` is within the plan or allowed.

        As long as no row passes its plan, nobody is asked: the plan as a whole was solved to be within ε.
        After that the plan's other rows are not covered any more either, and what was last allowed is the
        bound. A new one must be within ε and then `reserve`d, for it counts against other runs too.
        """
        wanted = self._counts | {row: self._counts.get(row, 0) + 1}
        if self._is_within_bound(wanted):
            return
        for ahead in AHEAD:
            wanted[row] = self._counts.get(row, 0) + ahead
            if wanted[row] > MAX_COUNT:  # more than a Release counts
                continue
            bound = _listed(wanted)
            if self._allowance(bound) and reserve(bound):
                self._bound = {known: wanted.get(known, 0) for known in self._bound}
                return
        raise BudgetSpent(f"phase {row.name}: one more release would pass the privacy budget")

    def granted(self) -> list[Release]:
        """What may be reached without asking: the bound, or what was counted where that has passed it."""
        return _listed(self._bound if self._is_within_bound(self._counts) else self._counts)

    def _is_within_bound(self, counts: dict[Release, int]) -> bool:
        return all(count <= self._bound.get(row, 0) for row, count in counts.items())

    def add(self, row: Release) -> None:
        """Counts one more of `row`."""
        self._counts[row] = self._counts.get(row, 0) + 1

    def releases(self) -> list[Release]:
        """All that was counted, in the order of first use."""
        return _listed(self._counts)


def _listed(counts: dict[Release, int]) -> list[Release]:
    return [replace(row, count=count) for row, count in counts.items()]
