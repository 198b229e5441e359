"""What it means that a run was ended early, in words for whoever ended it. PUBLIC."""

from collections.abc import Sequence
from pathlib import Path

from curriculumdp.curriculum.plan import Plan
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.event import PrivacyEvent, as_typed, rounded_up


def ending(run: Path) -> list[str]:
    """Return lines on a run that its operator ended: that it is final, what ε was spent, what is lost; else none."""
    ledger = Ledger.read(run / "private")
    if ledger.sealed != "operator":
        return []
    plan, events = Plan.from_record(ledger.plan["phases"]), ledger.events()
    spent = epsilon(events, plan.delta)
    return [
        f"ended for good: {run} cannot be resumed, its secret is erased",
        f"spent: ε = {rounded_up(spent)} of {as_typed(plan.budget)} at δ = {as_typed(plan.delta)}, which stays spent",
        f"lost: {_lost(ledger.planned, events)}",
    ]


def _lost(planned: Sequence[PrivacyEvent], done: Sequence[PrivacyEvent]) -> str:
    """Return which planned events were never made, by phase."""
    made = {row.name: row.count for row in done}
    left = [
        f"{row.count - made.get(row.name, 0)} of {row.count} planned events of the {row.name} phase"
        for row in planned
        if made.get(row.name, 0) < row.count
    ]
    return ", ".join(left) or "nothing that was planned"
