"""Files of a run that were damaged, exchanged or put back: the same run, or one clear line, and never less ε."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from curriculumdp.curriculum.train import export_run
from curriculumdp.ledger.run_ledger import Ledger
from tests.support.failing_disk import Disk, Operation, copy_folder
from tests.support.refusal import refusal_of, run_or_refusal
from tests.support.runs import finish, in_child, kill_at
from tests.support.small_run import Observer, ledger_lines, small
from tests.support.tried import TRIED

SEED = 5
FILES = ("ledger.jsonl", "ledger.key", "secret", "config.json", "checkpoint.json", "state.safetensors")
DATA_SETS = ("ledger.jsonl", "dataset.key", "mirrors/*")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, data: Path, undisturbed: dict[str, bytes]) -> Path:
    """A folder with a run that was killed in its last step, its data set's ledger, and what was seen of it."""
    place = tmp_path_factory.mktemp("killed")
    (place / "it").mkdir()
    observer = Observer(place / "seen")

    def work() -> None:
        kill_at(Ledger, "charge", 5, after=True)
        with observer.watching(place / "it" / "run"):
            finish(small(place / "it" / "run", data))

    assert in_child(work) == -signal.SIGKILL
    return place


def damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with some bits flipped, cut, doubled, zeroed or lengthened somewhere."""
    where, spoiled = rng.randrange(max(1, len(content))), bytearray(content)
    kind = rng.choice(["bit", "bit", "cut", "zeros", "more", "twice", "empty"])
    if kind == "bit" and content:
        spoiled[where] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        spoiled[where : where + 64] = bytes(len(spoiled[where : where + 64]))
    elif kind == "more":
        spoiled += rng.randbytes(rng.randrange(1, 50))
    elif kind == "twice":
        spoiled[where:where] = content[where : where + 200]
    else:
        del spoiled[where if kind == "cut" else 0 :]
    return bytes(spoiled)


def try_damage(killed: Path, place: Path, pattern: str, data: Path, rng: random.Random) -> str | None:
    """Damages one file, runs the same command; its refusal, or None if it came to the undisturbed outcome."""
    copy_folder(killed / "it", place / "it")
    run_dir, observer = place / "it" / "run", Observer(place / "seen")
    root = run_dir / "private" if pattern in FILES else place / "it" / "state"
    file = rng.choice(sorted(root.rglob(pattern)))
    content = damaged(file.read_bytes(), rng)
    mode = file.stat().st_mode
    file.unlink()  # copies share what is never changed in place
    file.write_bytes(content)
    file.chmod(mode)
    TRIED["faults damaged files"] += 1
    before = ledger_lines(run_dir) if pattern != "ledger.jsonl" else None
    with observer.watching(run_dir):
        refused = run_or_refusal(run_dir, data)
    TRIED["faults one-line refusals"] += refused is not None
    if refused is None:
        observer.check(run_dir, Observer(killed / "seen").lines())
        assert before is None or ledger_lines(run_dir)[: len(before)] == before
    shutil.rmtree(place)
    return refused


def outcome_after_damage(
    killed: Path, tmp_path: Path, data: Path, undisturbed: dict[str, bytes], times: int, seed: int
) -> list[str]:
    """What went wrong: a traceback, an under-count; a damaged ledger, key or secret that was not noticed."""
    rng, failed = random.Random(seed), []
    for number in range(times):
        pattern = (FILES + DATA_SETS)[number % len(FILES + DATA_SETS)]
        try:
            try_damage(killed, tmp_path / f"{number}", pattern, data, rng)
        except AssertionError as error:
            failed.append(f"{pattern} number {number}: {error}")
    return failed


def test_a_sample_of_damaged_files_is_refused_or_does_no_harm(
    killed: Path, tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    assert not outcome_after_damage(killed, tmp_path, data, undisturbed, 18, SEED)


@pytest.mark.slow
def test_many_damaged_files_are_refused_or_do_no_harm(
    killed: Path, tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    failed = outcome_after_damage(killed, tmp_path, data, undisturbed, 450, SEED + 1)
    assert not failed, "\n".join(failed)


def test_a_run_folder_put_back_to_any_earlier_moment_is_refused(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    """The data set's ledger stays as it is at the end; the run's folder is what a backup of any moment held."""
    watched, moments = tmp_path / "watched", tmp_path / "moments"
    watched.mkdir()
    moments.mkdir()
    kept: list[Path] = []

    def before(operation: Operation) -> None:
        ledger = watched / "run" / "private" / "ledger.jsonl"
        if operation.name == "fsync" and operation.path == ledger:
            kept.append(copy_folder(watched / "run", moments / f"{operation.number}"))

    with Disk(watched, before):
        release = finish(small(watched / "run", data))
    entries = len(ledger_lines(watched / "run"))
    assert len(kept) >= entries - 1
    for moment in kept:
        TRIED["faults rolled back folders"] += 1
        shutil.rmtree(watched / "run")
        moment.rename(watched / "run")
        missing = entries - len(ledger_lines(watched / "run"))
        refused = run_or_refusal(watched / "run", data)
        assert refused is not None or missing == 0, f"{missing} entries behind and not noticed"
        assert missing == 0 or "rolled back" in str(refused), refused
    assert release == watched / "run" / "release"


def test_a_copied_run_folder_is_refused_once_the_other_has_gone_on(
    killed: Path, tmp_path: Path, data: Path
) -> None:
    copy_folder(killed / "it", tmp_path / "it")
    copy_folder(tmp_path / "it" / "run", tmp_path / "it" / "copy")
    assert run_or_refusal(tmp_path / "it" / "run", data) is None
    refused = refusal_of(lambda: finish(small(tmp_path / "it" / "copy", data)))
    assert refused is not None
    assert "copy" in refused
    TRIED["faults copied folders"] += 1


def edit_unit(run_dir: Path) -> None:
    """A config, changed by hand, that would certify more than was trained."""
    file = run_dir / "private" / "config.json"
    saved = json.loads(file.read_text())
    saved["data"]["unit"] = "all images of one patient"
    file.write_text(json.dumps(saved))


def test_no_certificate_comes_from_a_config_that_was_changed_by_hand(
    killed: Path, tmp_path: Path, data: Path
) -> None:
    copy_folder(killed / "it", tmp_path / "it")
    run_dir = tmp_path / "it" / "run"
    before = (run_dir / "private" / "ledger.jsonl").read_bytes()
    edit_unit(run_dir)
    refused = refusal_of(lambda: export_run(run_dir, tmp_path / "out", None, end_run=True))
    assert "config.json" in str(refused)
    assert not (tmp_path / "out").exists()
    assert (run_dir / "private" / "ledger.jsonl").read_bytes() == before, "the run was ended"


def test_a_sealed_run_is_not_published_again_under_another_config(tmp_path: Path, data: Path) -> None:
    release = finish(small(tmp_path / "run", data))
    shutil.rmtree(release)
    edit_unit(tmp_path / "run")
    other = small(tmp_path / "run", data, data__unit="all images of one patient")
    assert "config.json" in str(refusal_of(lambda: finish(other)))
    assert not release.exists()


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b"{}"])
def test_a_ruined_config_is_named(killed: Path, tmp_path: Path, data: Path, content: bytes) -> None:
    copy_folder(killed / "it", tmp_path / "it")
    run_dir = tmp_path / "it" / "run"
    (run_dir / "private" / "config.json").write_bytes(content)
    assert str(run_dir) in str(run_or_refusal(run_dir, data))
    assert "config.json" in str(refusal_of(lambda: export_run(run_dir, tmp_path / "out", None, end_run=True)))
