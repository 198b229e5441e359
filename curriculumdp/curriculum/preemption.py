"""Preemption: SIGTERM from a scheduler, or the death of the launcher."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# With one process, `accelerate launch` dies on SIGTERM without forwarding it to its worker (measured).
LAUNCHED_BY = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets inside the `with` block; the current step is finished first."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, before)


def launcher_is_gone() -> bool:
    """Tell whether `accelerate launch` started this process and has since died."""
    return LAUNCHED_BY is not None and os.getppid() != LAUNCHED_BY
