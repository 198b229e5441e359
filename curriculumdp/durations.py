"""Durations as a person reads them."""

UNITS = ((86400.0, 2, "days"), (3600.0, 1, "h"), (60.0, 1, "min"))  # seconds in one, from how many on, name


def duration(seconds: float) -> str:
    """Return a duration as text in days, hours, minutes or seconds, whichever fits, with two or three digits."""
    for length, least, name in UNITS:
        if seconds >= least * length:
            count = seconds / length
            return f"{count:,.0f} {name}" if count >= 100 else f"{count:.3g} {name}"
    return f"{seconds:.2g} s"
