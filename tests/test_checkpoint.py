"""A half-written, truncated or altered checkpoint is never taken, and the one before it is."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from curriculumdp import checkpoint
from curriculumdp.checkpoint import CheckpointError, Position, load_latest, save_checkpoint
from tests.support.failing_disk import Disk, Operation

KEY = b"k" * 32


def position(step: int) -> Position:
    return Position(2, "private", step, step + 3, "ab" * 32)


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, position(step), {"weights": torch.full((100,), float(step))}, KEY, keep)


def load(folder: Path) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    found = load_latest(folder, KEY, warnings.append)
    if found is None:
        return None, warnings
    assert torch.equal(found[1]["weights"], torch.full((100,), float(found[0].step)))
    return found[0].step, warnings


def test_the_latest_checkpoint_comes_back_whole(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 10)
    found = load_latest(tmp_path, KEY, print)
    assert found is not None
    assert found[0] == position(10)


def test_a_later_phase_is_later_than_a_higher_step(tmp_path):
    save_checkpoint(
        tmp_path, Position(1, "warmup", 600, 1, ""), {"weights": torch.full((100,), 600.0)}, KEY, 9
    )
    save_checkpoint(tmp_path, Position(2, "private", 1, 1, ""), {"weights": torch.full((100,), 1.0)}, KEY, 9)
    assert load(tmp_path) == (1, [])


def test_no_checkpoint_is_no_error(tmp_path):
    assert load(tmp_path / "nothing") == (None, [])


def test_only_the_newest_are_kept(tmp_path):
    for step in range(5):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2-private-0000003", "2-private-0000004"]


def test_a_damaged_later_checkpoint_or_a_foreign_folder_does_not_drive_out_a_whole_one(tmp_path):
    damaged = save(tmp_path, 30, keep=1)
    (damaged / "state.safetensors").write_bytes(b"")
    (tmp_path / "zz-lost+found").mkdir()
    for step in (10, 20):
        save(tmp_path, step, keep=1)
    assert load(tmp_path)[0] == 20
    assert len(load(tmp_path)[1]) == 1
    assert not (tmp_path / position(10).folder_name).exists()


def test_steps_of_eight_digits_come_after_those_of_seven(tmp_path):
    save(tmp_path, 10_000_000)
    save(tmp_path, 9_999_999)
    assert load(tmp_path) == (10_000_000, [])


def test_a_record_nested_without_end_is_passed_over(tmp_path):
    save(tmp_path, 5)
    (save(tmp_path, 10) / "checkpoint.json").write_text("[" * 100_000)
    assert load(tmp_path)[0] == 5


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, name, damage):
    save(tmp_path, 5)
    file = save(tmp_path, 10) / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        file.write_bytes({"cut": content[: len(content) // 2], "flip": flipped, "empty": b""}[damage])
    step, warnings = load(tmp_path)
    assert step == 5
    assert len(warnings) == 1
    assert "2-private-0000010" in warnings[0]


def test_every_byte_of_the_record_is_guarded(tmp_path):
    file = save(tmp_path, 5) / "checkpoint.json"
    content = file.read_bytes()
    for place in range(len(content)):
        if chr(content[place]).isspace():
            continue
        file.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        assert load(tmp_path)[0] is None, f"byte {place} of checkpoint.json can be changed unnoticed"


def test_a_record_moved_under_other_weights_is_refused(tmp_path):
    first, second = save(tmp_path, 5), save(tmp_path, 6)
    (second / "state.safetensors").write_bytes((first / "state.safetensors").read_bytes())
    assert load(tmp_path)[0] == 5


def test_another_runs_checkpoint_is_refused(tmp_path):
    save(tmp_path, 5)
    assert load_latest(tmp_path, b"x" * 32, lambda _: None) is None


@pytest.mark.parametrize("call", ["save_file", "_sha256", "_mac", "sync"])
def test_a_crash_inside_a_write_leaves_the_one_before(tmp_path, monkeypatch, call):
    save(tmp_path, 5)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, call, crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 10)
    assert load(tmp_path) == (5, [])
    save(tmp_path, 10)
    assert load(tmp_path) == (10, [])
    assert not list(tmp_path.glob(".*"))


class Killed(BaseException):
    """What no handler of the code takes: the disk is as a kill leaves it."""


def while_saving_again(folder: Path, keep: int, at: int, fault: Callable[[Disk], None]) -> bool:
    """Saves step 5 twice, with `fault` before the `at`th change of the second; whether there are so many."""
    folder.mkdir()
    reached: list[int] = []
    first = 0

    def before(operation: Operation) -> None:
        if first and operation.number == first + at:
            reached.append(at)
            fault(disk)

    disk = Disk(folder, before)
    with disk, suppress(Killed, CheckpointError):
        save(folder / "run", 5, keep)
        first = disk.number
        save(folder / "run", 5, keep)
    return bool(reached)


def killed(_: Disk) -> None:
    raise Killed


def failed(_: Disk) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("fault", [killed, failed])
@pytest.mark.parametrize("keep", [1, 2])
def test_no_fault_while_a_step_is_saved_again_takes_the_only_checkpoint(tmp_path, keep, fault):
    """As after two preemptions at one step: at every moment one is whole under a name that resume takes."""
    changes = 1
    while while_saving_again(tmp_path / f"{changes}", keep, changes, fault):
        folder = tmp_path / f"{changes}" / "run"
        assert load(folder) == (5, []), f"before change {changes}"
        save(folder, 5, keep)
        assert [p.name for p in folder.iterdir()] == ["2-private-0000005"], f"leftovers of change {changes}"
        changes += 1
    assert changes > 10


def test_no_power_cut_while_a_step_is_saved_again_takes_the_only_checkpoint(tmp_path):
    number, cut = 1, tmp_path / "cut"
    while while_saving_again(tmp_path / f"{number}", 1, number, lambda disk: disk.durable.write(cut)):
        assert load(cut / "run") == (5, []), f"before change {number}"
        shutil.rmtree(cut)
        number += 1
    assert number > 10


def test_a_checkpoint_left_aside_counts_like_any_other(tmp_path):
    """A kill between the two renames leaves it alone there: it is no less than the others."""
    for step in (3, 5):
        save(tmp_path, step)
    (tmp_path / "2-private-0000005").rename(tmp_path / "2-private-0000005.1")
    assert load(tmp_path) == (5, [])
    save(tmp_path, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2-private-0000005.1", "2-private-0000006"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    save(tmp_path, 5)
    program = f"""
        import resource, signal, sys, torch
        from pathlib import Path
        from curriculumdp.checkpoint import CheckpointError, Position, save_checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            at = Position(2, "private", 10, 0, "")
            save_checkpoint(Path({str(tmp_path)!r}), at, {{"w": torch.zeros(9999)}}, b"k", 2)
        except CheckpointError as error:
            sys.exit(str(error))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])},
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert load(tmp_path) == (5, [])
    assert [p.name for p in tmp_path.iterdir()] == ["2-private-0000005"]


def test_a_checkpoint_is_safetensors_and_json_only_and_private(tmp_path):
    path = save(tmp_path / "checkpoints", 5)
    assert sorted(p.name for p in path.iterdir()) == ["checkpoint.json", "state.safetensors"]
    assert json.loads((path / "checkpoint.json").read_text())["step"] == 5
    assert path.stat().st_mode & 0o077 == 0


def test_an_error_of_a_read_only_place_names_it(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="file"):
        save(blocked / "checkpoints", 1)
