"""Killed anywhere or out of space, a ledger has each charge once, and the same command goes on."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curriculumdp.ledger.run_ledger import Ledger, ledger_is_missing
from curriculumdp.privacy.secret import RunSecret
from tests.support.run_ledger import (
    DATA,
    FACTS,
    FINGERPRINT,
    NONCE,
    PLAN,
    charge,
    counts,
    create,
    reopen,
    resume,
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program may catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The nth call into the operating system that could change the disk is done half, or not at all."""
    left = itertools.count(1 - nth)

    def patched(real: Callable[..., Any], half: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(left) != 0:
                return real(*args, **kwargs)
            if half:
                real(args[0], args[1][: len(args[1]) // 2])
            raise Killed

        return call

    for name in ("open", "write", "fsync", "rename", "unlink"):
        monkeypatch.setattr(os, name, patched(getattr(os, name), name == "write"))


def start(folder: Path) -> Ledger:
    """What a run does to begin or go on."""
    if ledger_is_missing(folder):
        made = RunSecret.create()
        made.save(folder / "secret")
        ledger = Ledger.create(folder, made, PLAN, DATA)
    else:
        ledger = Ledger.open(folder, RunSecret.load(folder / "secret"), FACTS, DATA)
    ledger.begin(FINGERPRINT, NONCE)
    return ledger


def test_a_creation_killed_anywhere_is_begun_again_by_the_same_command(tmp_path, monkeypatch):
    for nth in range(1, 100):
        folder = tmp_path / str(nth)
        folder.mkdir()
        with monkeypatch.context() as patched:
            kill_at(patched, nth)
            try:
                start(folder)
            except Killed:
                pass
            else:
                break
        ledger = start(folder)
        charge(ledger, 0)
        assert counts(Ledger.read(folder)) == {"private": 1}
        assert not list(folder.glob(".*"))
    assert nth > 12


def test_a_charge_killed_anywhere_is_charged_exactly_once_by_the_same_command(tmp_path, monkeypatch):
    for nth in range(1, 100):
        folder = tmp_path / str(nth)
        ledger = create(folder)
        charge(ledger, 0)
        returned = None
        with monkeypatch.context() as patched:
            kill_at(patched, nth)
            with contextlib.suppress(Killed):
                returned = charge(ledger, 1)
        ledger.close()
        ledger = reopen(folder)
        ledger.begin(FINGERPRINT, NONCE)
        again = charge(ledger, 1)
        assert returned in (None, again)
        assert counts(Ledger.read(folder)) == {"private": 2}
        if returned is not None:
            break
    assert nth > 2


def test_what_a_killed_process_was_given_is_in_its_ledger(tmp_path):
    """SIGKILL for real, in the middle of a process that charges as fast as it can."""
    create(tmp_path).close()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ledger = resume(tmp_path, allowance=lambda _: True)
            for step in itertools.count():
                charge(ledger, step)
                os.write(tell, b"x")
        finally:
            os._exit(1)
    os.close(tell)
    given = len(os.read(told, 1))
    while given < 40:
        given += len(os.read(told, 1))
    os.kill(child, signal.SIGKILL)
    while more := os.read(told, 100):
        given += len(more)
    os.close(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    ledger = resume(tmp_path, allowance=lambda _: True)
    assert given <= counts(ledger)["private"] <= given + 1
    charge(ledger, given)
    assert counts(ledger)["private"] == given + 1


def test_a_full_disk_is_one_clear_line_and_charges_nothing(tmp_path):
    create(tmp_path).close()
    size = (tmp_path / "ledger.jsonl").stat().st_size
    program = f"""
        import resource, signal, sys
        from pathlib import Path
        from curriculumdp.ledger.run_ledger import LedgerError
        from tests.support.run_ledger import charge, resume
        ledger = resume(Path({str(tmp_path)!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 400}, {size + 400}))
        for step in range(20):
            try:
                charge(ledger, step)
            except LedgerError as error:
                sys.exit(f"step {{step}}: {{error}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 1
    assert "step 1: " in done.stderr
    assert "could not be written (File too large); nothing was charged" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "ledger.jsonl").read_bytes().endswith(b'"}\n')
    ledger = resume(tmp_path)
    assert counts(ledger) == {"private": 1}
    charge(ledger, 1)
