"""What the tests of faults and attacks have tried, counted, for the line at a session's end."""

from collections import Counter
from typing import Any

TRIED: Counter[str] = Counter()


def tell(terminalreporter: Any, area: str) -> None:
    """Prints the counts of one area (the keys that begin with its name)."""
    counts = [
        f"{count} {key.removeprefix(area).strip()}"
        for key, count in sorted(TRIED.items())
        if key.startswith(area)
    ]
    if counts:
        terminalreporter.write_line(f"{area} tried: {', '.join(counts)}")
