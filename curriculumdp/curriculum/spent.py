"""An upper bound on the ε that a run has spent so far, cheap enough for a progress bar."""

from bisect import bisect_left
from collections.abc import Callable

from curriculumdp.curriculum.plan import Plan, spent_table

POINTS = 12


class SpentSoFar:
    """The ε at the next of a dozen even points of the plan or end of a phase: never below what is spent. PUBLIC."""

    def __init__(self, plan: Plan) -> None:
        self._table = spent_table(plan, POINTS)
        self._before, self._spending = {}, {}
        done = 0
        for phase in plan.phases:
            self._before[phase.name], self._spending[phase.name] = done, phase.event is not None
            done += phase.steps if phase.event is not None else 0

    def __call__(self, phase: str, step: int) -> float:
        """Return an upper bound on the ε spent once `step` steps of `phase` are done."""
        uses = self._before[phase] + step * self._spending[phase]
        return self._table[bisect_left(self._table, (uses, 0.0))][1]


def counting_repeats(
    spent: Callable[[str, int], float], plan: Plan, charged: Callable[[], int]
) -> Callable[[str, int], float]:
    """Return `spent`, but with the whole budget as its bound while more events are `charged` than planned by then.

    That is so once steps have been repeated under new keys, and until a replay has caught up with the ledger: the cost
    of the plan's first events does not bound what was spent then, but the budget does.
    """
    before, done = {}, 0
    for phase in plan.phases:
        before[phase.name] = done
        done += phase.steps if phase.event is not None else 0

    def bound(phase: str, step: int) -> float:
        planned = before[phase] + (step if plan.phase(phase).event is not None else 0)
        return spent(phase, step) if charged() <= planned else plan.budget

    return bound
