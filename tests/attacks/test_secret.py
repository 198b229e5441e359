"""The run's secret is in its own file of mode 0600 and nowhere else: no output, no other file, no traceback."""

import base64
import errno
import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.world import World, one_process
from tests.support.failing_disk import Disk, Operation
from tests.support.refusal import run_or_refusal
from tests.support.runs import finish, in_child
from tests.support.small_run import small
from tests.support.tiny_release import write_keys
from tests.support.tried import TRIED


class Fault(Exception):
    """What no code of ours expects."""


def forms(secret: bytes) -> list[bytes]:
    """How a secret's bytes may be written down, whole or to a quarter."""
    found = []
    for part in (secret, *(secret[start : start + 8] for start in range(0, 32, 8))):
        listed = ", ".join(map(str, part))
        texts = [part.hex(), part.hex().upper(), listed, listed.replace(" ", ""), repr(part)[2:-1]]
        found += [part, *(text.encode() for text in texts)]
    return [*found, base64.b64encode(secret)[:-2]]


def assert_absent(secret: bytes, content: bytes, where: object) -> None:
    joined = b" ".join(content.split())
    for form in forms(secret):
        assert form not in content, f"the secret is in {where}"
        assert form not in joined, f"the secret is in {where}"


TESTS = str(Path(__file__).parents[1])


def traceback_with_locals(error: BaseException | None) -> bytes:
    """All that a crash reporter could show: every frame's names and their values, chained errors too.

    Frames of these tests, which hold what they look for, are left out.
    """
    shown = b""
    while error is not None:
        frames = [
            frame
            for frame in traceback.StackSummary.extract(
                traceback.walk_tb(error.__traceback__), capture_locals=True
            )
            if not frame.filename.startswith(TESTS)
        ]
        held = [f"{name} = {value}" for frame in frames for name, value in (frame.locals or {}).items()]
        shown += "\n".join([repr(error), *held]).encode()
        error = error.__cause__ or error.__context__
    return shown


def error_of(run_dir: Path, data: Path) -> BaseException | None:
    """What ends a run under a secret of its own."""
    try:
        run_curriculum(small(run_dir, data), one_process())
    except Exception as error:
        return error
    return None


def places_of(run_dir: Path, data: Path) -> list[int]:
    """Changes of files at which to break a run: all of the secret's own, and some all over the run."""
    changes: list[Operation] = []
    with Disk(run_dir.parent, changes.append):
        finish(small(run_dir, data))
    own = [change.number for change in changes if change.path.name == "secret" and change.name != "unlink"]
    spread = [change.number for change in changes if own[0] < change.number < own[3]][::13]
    return sorted({*own[:3], *spread})


@pytest.mark.parametrize("kind", [OSError, Fault])
def test_no_traceback_shows_the_secret(tmp_path: Path, data: Path, kind: type[Exception]) -> None:
    searched = 0
    for number in places_of(tmp_path / "counted" / "run", data):
        place = tmp_path / f"{number}"
        place.mkdir()

        def before(operation: Operation, number: int = number) -> None:
            if operation.number == number:
                raise kind(errno.ENOSPC, "No space left on device")

        with Disk(place, before):
            error = error_of(place / "run", data)
        file = place / "run" / "private" / "secret"
        # A checkpoint too many that cannot be removed ends no run; a finished one has no secret left.
        if error is not None and file.exists() and file.stat().st_size == 32:
            searched += 1
            assert_absent(
                file.read_bytes(), traceback_with_locals(error), f"the traceback of change {number}"
            )
    TRIED["attacks tracebacks searched"] += searched
    assert searched >= 6


def test_a_world_that_breaks_while_it_shares_the_secret_shows_none(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = World.broadcast_
    for nth in range(1, 16):
        calls = 0

        def broken(self: World, tensor: object, nth: int = nth) -> None:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Fault
            original(self, tensor)  # type: ignore[arg-type]

        monkeypatch.setattr(World, "broadcast_", broken)
        error = error_of(tmp_path / f"{nth}", data)
        file = tmp_path / f"{nth}" / "private" / "secret"
        if file.exists():
            TRIED["attacks tracebacks searched"] += 1
            assert_absent(
                file.read_bytes(), traceback_with_locals(error), f"the traceback of broadcast {nth}"
            )


def test_a_searched_traceback_would_show_a_secret_in_a_local_name() -> None:
    secret = bytes(range(200, 232))

    with pytest.raises(Exception) as caught:  # noqa: PT011 - of a library's frame, which names it
        base64.b64decode(secret, altchars=b"")
    with pytest.raises(AssertionError, match="the secret is in"):
        assert_absent(secret, traceback_with_locals(caught.value), "it")


def test_no_file_output_or_process_list_shows_the_secret(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Over a run that breaks off, is exported with a signature, and another that comes to its end."""
    key, _ = write_keys(tmp_path, "ours")
    seen: list[bytes] = []

    def before(operation: Operation) -> None:
        file = tmp_path / "run" / "private" / "secret"
        if file.exists() and file.stat().st_size == 32 and any(file.read_bytes()):
            seen.append(file.read_bytes())
            for source in ("cmdline", "environ", "comm"):
                assert_absent(seen[-1], Path(f"/proc/self/{source}").read_bytes(), f"/proc/self/{source}")
        if operation.path.name == "ledger.jsonl" and len(seen) > 80:
            raise Fault

    with Disk(tmp_path / "run", before), pytest.raises(Fault):
        run_curriculum(small(tmp_path / "run", data), one_process())
    export_run(tmp_path / "run", tmp_path / "out", key, end_run=True)
    shown = "".join(capfd.readouterr()).encode()
    assert len(set(seen)) == 1
    assert not (tmp_path / "run" / "private" / "secret").exists()
    assert_absent(seen[0], shown, "the output")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert_absent(seen[0], file.read_bytes(), file)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_are_those_that_are_meant_whatever_the_umask(tmp_path: Path, data: Path, umask: int) -> None:
    def work() -> None:
        os.umask(umask)
        modes: dict[str, int] = {}

        def before(_: Operation) -> None:
            for path in (tmp_path / "run" / "private").glob("*"):
                modes[path.name] = modes.get(path.name, 0) | stat.S_IMODE(path.lstat().st_mode)

        with Disk(tmp_path / "run", before):
            finish(small(tmp_path / "run", data))
        for name, mode in modes.items():
            assert mode & 0o077 == 0, f"{name} could be read by others (mode {mode:o})"
        assert {"secret", "ledger.key", "ledger.jsonl", "checkpoints", "cache", "metrics.jsonl"} <= set(modes)
        assert stat.S_IMODE((tmp_path / "run" / "private").stat().st_mode) == 0o700
        for path in (tmp_path / "run" / "release").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
        for path in (tmp_path / "state").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path

    assert in_child(work) == 0


def test_places_that_lead_elsewhere_are_refused(tmp_path: Path, data: Path) -> None:
    """Links in a run's folder where files are made: nothing is written or read through them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    refusals: list[Callable[[Path], None]] = [
        lambda run: (run / "release").symlink_to(outside),
        lambda run: (run / "private" / "secret").symlink_to(outside / "secret"),
        lambda run: (run / "private" / "ledger.key").symlink_to(outside / "key"),
    ]
    for number, plant in enumerate(refusals):
        run_dir = tmp_path / f"{number}" / "run"
        (run_dir / "private").mkdir(parents=True)
        plant(run_dir)
        run_or_refusal(run_dir, data)
        assert not list(outside.iterdir())
