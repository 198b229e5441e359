"""An upper bound on the ε that a plan has spent so far, cheap enough for a progress bar."""

from bisect import bisect_left

from curriculumdp.curriculum.plan import Plan
from curriculumdp.privacy.accountant import epsilon_path

POINTS = 12


class SpentSoFar:
    """ε at the next of a dozen points of the plan: never below what is spent. Public."""

    def __init__(self, plan: Plan) -> None:
        releases = plan.releases()
        self._before: dict[str, int] = {}
        done = 0
        for phase in plan.phases:
            self._before[phase.name] = done
            done += phase.steps if phase.mechanism is not None else 0
        self._spends = {phase.name: phase.mechanism is not None for phase in plan.phases}
        ends = {sum(row.count for row in releases[: i + 1]) for i in range(len(releases))}
        self._points = sorted(ends | {0} | {round(done * i / POINTS) for i in range(POINTS + 1)})
        self._epsilon = epsilon_path(releases, self._points, plan.delta)

    def __call__(self, phase: str, step: int) -> float:
        uses = self._before[phase] + (step if self._spends[phase] else 0)
        return self._epsilon[bisect_left(self._points, uses)]
