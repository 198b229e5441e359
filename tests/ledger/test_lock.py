"""One process at a time trains in a folder; a lock ends with its process, however that dies."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from curriculumdp.ledger.chain import LedgerError
from curriculumdp.ledger.lock import RunLock, waiting_lock


def holder(folder: Path) -> int:
    """The pid of a forked process that holds the folder's lock until it is killed."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with RunLock(folder):
                os.write(told, b"x")
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(told)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    return pid


def test_a_second_process_is_told_who_has_the_folder_until_that_dies(tmp_path):
    folder = tmp_path / "run" / "private"
    pid = holder(folder)
    try:
        with pytest.raises(LedgerError, match=rf"another process is training in this folder \(pid {pid}\)"):
            RunLock(folder).__enter__()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with RunLock(folder):
        pass


def test_a_second_lock_in_one_process_is_refused_and_the_first_can_be_given_back(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(LedgerError, match=f"pid {os.getpid()}"), RunLock(tmp_path):
            pass
        with pytest.raises(LedgerError), RunLock(tmp_path):
            pass
    with RunLock(tmp_path):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


def test_the_private_folder_is_for_its_owner_alone(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir(mode=0o755)
    with RunLock(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "lock").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_locked_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be locked") as raised:
        RunLock(tmp_path / "file" / "private").__enter__()
    assert "\n" not in str(raised.value)


def test_a_waiting_lock_waits_for_the_one_before(tmp_path):
    order = []

    def second() -> None:
        with waiting_lock(tmp_path / "lock"):
            order.append("second")

    with waiting_lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
