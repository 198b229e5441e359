"""Preemption: SIGTERM from a scheduler, Ctrl-C, or the death of the launcher.

While a run trains, SIGTERM waits for the end of the step, whose result is then saved (`stop_signal`). At any other
time there is nothing to save, so the process ends at once, even in the middle of a library's call that no Python
handler would interrupt, such as a collective: a thread sees to that. Ctrl-C always ends it at once. A run may be killed
at any moment anyway.

It imports only the standard library, so that a command heeds signals before it imports anything slow.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

# With one process, `accelerate launch` dies on SIGTERM without forwarding it to its worker (measured).
LAUNCHED_BY = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
PREEMPTED = 128 + signal.SIGTERM  # schedulers read it as "terminated on request"
LINES = {
    signal.SIGTERM: "preempted: nothing is lost; run the same command again to resume",
    signal.SIGINT: "error: interrupted: nothing is lost; run the same command again to resume",
}
GLANCE = 1.0  # seconds between two looks at whether the launcher still lives

_ending = threading.Lock()


@contextmanager
def stop_signal(stopping: threading.Event) -> Iterator[None]:
    """Let SIGTERM set `stopping` inside the `with` block; the current step is finished first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def launcher_is_gone() -> bool:
    """Tell whether `accelerate launch` started this process and has since died."""
    return LAUNCHED_BY is not None and os.getppid() != LAUNCHED_BY


def is_main_process() -> bool:
    """Tell whether this is the process that speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def heed_signals(record: Callable[[int], None] = lambda status: None) -> None:
    """From now on end this process at once on SIGTERM (status 143) and Ctrl-C (130), but for `stop_signal`'s block.

    `record` is called with that status as soon as the signal is there, for whoever must know even if the system kills
    this process before its step is done. For the main thread of a command, once.
    """
    end = partial(_end_at_once, record)
    for number in LINES:
        signal.signal(number, end)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_leave_to_the_parent)
    threading.Thread(target=_watch, args=(reader, writer, end, record), daemon=True).start()


def _watch(
    reader: socket.socket,
    writer: socket.socket,
    end: Callable[[int, FrameType | None], None],
    record: Callable[[int], None],
) -> None:
    """Call `end` for a signal whose handler it is, though the main thread may be unable to run any handler.

    `writer` is held so that nobody closes it.
    """
    while writer.fileno() >= 0:
        heard = select.select([reader], [], [], GLANCE)[0]
        number = reader.recv(1)[0] if heard else signal.SIGTERM if launcher_is_gone() else 0
        if number not in LINES:
            continue
        if signal.getsignal(number) is end:
            end(number, None)
        elif heard:
            record(128 + number)


def _end_at_once(record: Callable[[int], None], number: int, _: FrameType | None) -> None:
    if not _ending.acquire(blocking=False):
        time.sleep(GLANCE)  # the other thread is ending the process
        return
    try:
        record(128 + number)
        if is_main_process():
            print(f"\n{LINES[signal.Signals(number)]}", file=sys.stderr, flush=True)
    finally:
        os._exit(128 + number)


def _leave_to_the_parent() -> None:
    """Give a forked child the system's own handlers; a signal to it must not wake its parent's thread."""
    signal.set_wakeup_fd(-1)
    for number in LINES:
        signal.signal(number, signal.SIG_DFL)
