"""What the runs on one data set have reserved, and the events that all of it comes to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from curriculumdp.privacy.event import MAX_COUNT, PrivacyEvent


@dataclass(frozen=True)
class Reservation:
    """What a run may cost or, once sealed, did cost. `content` is a keyed MAC of the data it used."""

    run: str
    events: tuple[PrivacyEvent, ...]
    epsilon: float
    content: str
    sealed: bool = False


def events_of(reservations: Iterable[Reservation]) -> list[PrivacyEvent]:
    """Return all reserved events as rows to compose; equal rows are merged, up to 10⁶ uses per row."""
    every = [event for reservation in reservations for event in reservation.events]
    return [
        replace(row, count=min(MAX_COUNT, count - before))
        for row, count in _counted(every).items()
        for before in range(0, count, MAX_COUNT)
    ]


def _counted(events: Sequence[PrivacyEvent]) -> dict[PrivacyEvent, int]:
    """Return how often each row (an event with its count set to 0) is used."""
    counts: dict[PrivacyEvent, int] = {}
    for event in events:
        row = replace(event, count=0)
        counts[row] = counts.get(row, 0) + event.count
    return counts
