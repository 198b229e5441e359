"""A run to be refused, the line that refuses it, and whether anything was touched."""

import signal
from pathlib import Path

import pytest

from curriculumdp.ledger.run_ledger import Ledger
from tests.support.runs import finish, in_child, kill_at, tiny


def killed_run(run_dir: Path, nth_charge: int = 6, **changes: object) -> None:
    """A run killed in its third DP-SGD step, with a checkpoint after the second."""

    def killed() -> None:
        kill_at(Ledger, "charge", nth_charge, after=True)
        finish(tiny(run_dir, **changes))

    assert in_child(killed) == -signal.SIGKILL


def files_of(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, but for the pid in locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != "lock"
    }


def refusal(work) -> str:
    """The one line of the error that `work` raises, which must be one of this package's about its input."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the checks below say which
        work()
    assert type(caught.value).__module__.startswith("curriculumdp")
    assert "\n" not in str(caught.value)
    return str(caught.value)
