"""What this machine would charge again, said before it happens (design D1). PUBLIC: counts of steps and ε.

Steps that the ledger holds and that come after the last checkpoint are replayed, at no charge, only where the sums come
out as they did: not under other libraries, another processor or other options marked *fresh*.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from curriculumdp.curriculum.folder import within
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.errors import UserError
from curriculumdp.ledger.entries import changed_fields
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.event import AccountingError, PrivacyEvent, rounded_up

SHOWN, LONGEST = 2, 90  # changes named, and characters of each


class RechargeRefused(UserError):
    """Steps would be charged again, which the command did not accept; nothing has been written."""


@dataclass(frozen=True)
class Recharge:
    """Recorded steps that would be charged again: of each phase (first, count), counted from 0.

    spent, then: the ε spent now, and once they have been charged again. lost: the final steps of `last`, the last
    phase that spends, which the budget would no longer admit, out of `planned`; more if `data.budget` has no room.
    """

    steps: dict[str, tuple[int, int]]
    spent: str
    then: str
    lost: int
    planned: int
    last: str

    def __str__(self) -> str:
        which = ", ".join(_span(phase, *steps) for phase, steps in self.steps.items())
        fate = (
            f"end the run {self.lost} of its {self.planned} {self.last} steps early"
            if self.lost
            else "cost no final step"
        )
        return f"charging {which} again would raise the ε spent from {self.spent} to {self.then} and {fate}"


def consent(run: Run, state: State, fingerprint: Mapping[str, Any], accepted: bool) -> None:
    """Raise RechargeRefused if resuming here would charge recorded steps again and `accepted` is not set.

    With it, or where nothing would be charged again, go on; what is accepted is said. On rank 0, once the state is
    restored and before anything is written.
    """
    assert run.ledger is not None
    before = run.ledger.fingerprint
    changed = changed_fields(before, fingerprint) if before else []
    found = recharge_of(run, state) if changed else None
    if found is None:
        return
    named = "; ".join(
        f"{f} was {_short(before.get(f))}, is {_short(fingerprint.get(f))}" for f in changed[:SHOWN]
    )
    more = f" (and {len(changed) - SHOWN} more)" if changed[SHOWN:] else ""
    if not accepted:
        raise RechargeRefused(
            f"{run.config.run_dir}: recorded steps cannot be replayed here ({named}{more}): {found}; resume where the "
            "run was, or accept this with --accept-recharge"
        )
    print(
        f"warning: recorded steps cannot be replayed here ({named}{more}): {found}, as accepted", flush=True
    )


def announce_recharge(run: Run, state: State) -> None:
    """Say what is charged again because a replayed sum is not the recorded one, although nothing known has changed.

    It is not refused: the same machine must be able to go on without anybody at hand.
    """
    print(
        "warning: a replayed sum is not the recorded one, though nothing known has changed: "
        f"{recharge_of(run, state)}",
        flush=True,
    )


def recharge_of(run: Run, state: State) -> Recharge | None:
    """Return what a new incarnation would charge again from the position of `state` on; None if nothing."""
    assert run.ledger is not None
    names, charged = run.config.curriculum, run.ledger.events()
    position = {name: state.step if place == state.phase else 0 for place, name in enumerate(names)}
    if len(state.embedding):  # released before its fit was interrupted: it is never released again
        position["frequency"] = 1
    ahead = names[state.phase :]
    recorded = {name: (position[name], run.ledger.charged.from_step(name, position[name])) for name in ahead}
    steps: dict[str, tuple[int, int]] = {name: found for name, found in recorded.items() if found[1]}
    if not steps:
        return None
    planned = {event.name: event for event in run.plan.events()}
    repeated = [replace(planned[name], count=count) for name, (_, count) in steps.items()]
    to_come = [
        replace(event, count=event.count - position[name]) for name, event in planned.items() if name in ahead
    ]
    delta, last = run.config.privacy.delta, run.plan.events()[-1]
    return Recharge(
        steps,
        _cost(charged, delta),
        _cost([*charged, *repeated], delta),
        _lost(run, _merged([*charged, *to_come]), to_come[-1].count),
        last.count,
        last.name,
    )


def _lost(run: Run, events: list[PrivacyEvent], most: int) -> int:
    """Return how many of the last event's uses, at most `most`, exceed the budget: some ten seconds."""
    *before, last = events
    fits = within(run.config)

    def without(count: int) -> bool:
        return fits([*before, *([replace(last, count=last.count - count)] if count < last.count else [])])

    return bisect_left(range(most), True, key=without)


def _merged(events: list[PrivacyEvent]) -> list[PrivacyEvent]:
    counts: dict[PrivacyEvent, int] = {}
    for event in events:
        row = replace(event, count=0)
        counts[row] = counts.get(row, 0) + event.count
    return [replace(row, count=count) for row, count in counts.items() if count]


def _cost(events: list[PrivacyEvent], delta: float) -> str:
    try:
        return rounded_up(epsilon(_merged(events), delta), 4)
    except AccountingError:
        return "more than can be computed"


def _span(phase: str, first: int, count: int) -> str:
    return (
        f"step {first + 1} of {phase}" if count == 1 else f"steps {first + 1} to {first + count} of {phase}"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
