"""Any single change of a file fails, or the disk fills up there: one clear line, then the same run."""

import errno
import os
import random
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.failing_disk import Disk, Operation, copy_folder
from tests.support.refusal import run_or_refusal
from tests.support.runs import finish, in_child, outcome_of
from tests.support.small_run import Observer, small
from tests.support.tried import TRIED

SEED = 2
# What needs room; the rest works on a full disk.
GROWS = ("open", "mkdir", "write", "pwrite", "ftruncate")


def fail_at(number: int, place: Path, data: Path, rng: random.Random) -> str | None:
    """A run whose change `number` fails, perhaps half-way, perhaps with all that need room after it."""
    lasting, code = rng.random() < 0.5, rng.choice([errno.ENOSPC, errno.EIO])
    watched = place / "watched"
    watched.mkdir(parents=True)
    observer = Observer(place / "seen")

    def before(operation: Operation) -> None:
        if operation.number == number or (lasting and operation.number > number and operation.name in GROWS):
            if operation.number == number and operation.content() and rng.random() < 0.5:
                operation.tear(operation.path, rng.random())
            named = [str(operation.path)] if operation.name in ("open", "mkdir", "rename", "unlink") else []
            raise OSError(code, os.strerror(code), *named)

    with Disk(watched, before), observer.watching(watched / "run"):
        return run_or_refusal(watched / "run", data)


def then_goes_on(place: Path, data: Path, undisturbed: dict[str, bytes]) -> None:
    """The disk is well again: the same command ends as if nothing had been."""
    run_dir, observer = place / "watched" / "run", Observer(place / "seen")
    with observer.watching(run_dir):
        assert run_or_refusal(run_dir, data) is None
    observer.check(run_dir)
    assert outcome_of(run_dir / "release") == undisturbed


def changes_in(place: Path, data: Path) -> int:
    """How many changes a whole run makes."""
    place.mkdir()
    with Disk(place, lambda _: None) as disk:
        finish(small(place / "run", data))
    return disk.number


def test_a_sample_of_failing_changes_ends_in_one_line_and_goes_on(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    rng = random.Random(SEED)
    for number in rng.sample(range(1, changes_in(tmp_path / "counted", data)), 6):
        refused = fail_at(number, tmp_path / f"{number}", data, rng)
        TRIED["faults changes failed"] += 1
        TRIED["faults one-line refusals"] += refused is not None
        then_goes_on(tmp_path / f"{number}", data, undisturbed)


@pytest.mark.slow
def test_every_failing_change_ends_in_one_line_and_goes_on(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    rng, failed = random.Random(SEED + 1), []
    for number in range(1, changes_in(tmp_path / "counted", data) + 1):
        place = tmp_path / f"{number}"
        TRIED["faults changes failed"] += 1
        try:
            TRIED["faults one-line refusals"] += fail_at(number, place, data, rng) is not None
            then_goes_on(place, data, undisturbed)
        except AssertionError as error:
            failed.append(f"change {number}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("largest", [700, 5_000])
def test_files_that_may_not_grow_end_in_one_line_and_the_run_goes_on(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes], largest: int
) -> None:
    """The kernel's own refusal, whatever code asks: safetensors in Rust, Pillow in C."""
    run_limited(tmp_path, data, undisturbed, largest)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [1, 60, 200, 1_500, 2_500, 3_500, 10_000, 20_000, 60_000, 100_000])
def test_files_that_may_not_grow_at_other_sizes(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes], largest: int
) -> None:
    run_limited(tmp_path, data, undisturbed, largest)


def run_limited(tmp_path: Path, data: Path, undisturbed: dict[str, bytes], largest: int) -> None:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        assert run_or_refusal(tmp_path / "watched" / "run", data), (
            "nothing was too large: choose a smaller limit"
        )

    assert in_child(limited) == 0
    TRIED["faults full disks"] += 1
    then_goes_on(tmp_path, data, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [4, 12, 40, 100, 200, 300, 400, 500])
def test_a_full_file_system_ends_in_one_line_and_the_run_goes_on(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes], kibibytes: int
) -> None:
    small_disk = tmp_path / "disk"
    small_disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(small_disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        refused = run_or_refusal(small_disk / "watched" / "run", data)
        copy_folder(small_disk / "watched", tmp_path / "watched") if refused else None
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
    TRIED["faults full disks"] += 1
    assert refused, "the disk was large enough: choose a smaller one"
    then_goes_on(tmp_path, data, undisturbed)
