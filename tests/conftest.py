"""One thread a test process: the suite shares two cores, and bits depend on the thread count.

torch reads OMP_NUM_THREADS, and Triton TRITON_INTERPRET, when first imported: so they are set here, before any test
is collected.
"""

import os
import threading
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tqdm import tqdm

from tests.support.tried import handed_over, lines, take_over

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# tqdm's own lock is one that forked processes share: a child killed while it holds it would stop all the others.
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist leaves what it has tried for the first one."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output.update(handed_over())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    take_over(getattr(node, "workeroutput", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was planted and tried, and which test caught it."""
    if found := lines():
        terminalreporter.section("planted and tried")
        for line in found:
            terminalreporter.write_line(line)
