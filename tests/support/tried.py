"""What the tests of faults, attacks and mutations have tried, for the lines at a session's end.

Processes of one session (pytest-xdist) hand theirs to the first one.
"""

from collections import Counter
from typing import Any

TRIED: Counter[str] = Counter()  # "area what": how many
PLANTED: list[tuple[str, str, float]] = []  # privacy fault, what caught it, seconds


def handed_over() -> dict[str, Any]:
    """What another process has tried, in plain values."""
    return {"tried": dict(TRIED), "planted": [list(row) for row in PLANTED]}


def take_over(handed: dict[str, Any]) -> None:
    """Adds what another process has tried."""
    TRIED.update(handed.get("tried", {}))
    PLANTED.extend((name, check, seconds) for name, check, seconds in handed.get("planted", []))


def lines() -> list[str]:
    """The summary: the table of planted faults, and a line for each area's counts."""
    areas: dict[str, list[str]] = {}
    for key, count in sorted(TRIED.items()):
        area, _, what = key.partition(" ")
        areas.setdefault(area, []).append(f"{count} {what}")
    return [*_table(), *(f"{area} tried: {', '.join(counts)}" for area, counts in areas.items())]


def _table() -> list[str]:
    if not PLANTED:
        return []
    width = max(len(name) for name, _, _ in PLANTED)
    survivors = sum(check.startswith("SURVIVED") for _, check, _ in PLANTED)
    return [
        *(f"{name:<{width}}  {seconds:5.2f} s  {check}" for name, check, seconds in PLANTED),
        f"{len(PLANTED)} privacy faults planted, {len(PLANTED) - survivors} caught, {survivors} survived, "
        f"{sum(seconds for _, _, seconds in PLANTED):.1f} s",
    ]
