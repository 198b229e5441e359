"""A run's release is its own, whole, and as new as the run: no other is pointed to, replaced or spent beside."""

import shutil
from pathlib import Path

import pytest

from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.release import export
from curriculumdp.release.verify import verify_release
from curriculumdp.world import one_process
from tests.support.refused import files_of, refusal
from tests.support.runs import finish, tiny


def test_the_release_of_a_run_whose_private_folder_is_gone_is_not_taken_for_anothers(tmp_path):
    """Else the same command spends again; and killed before it publishes, it would point to the old release."""
    release = finish(tiny(tmp_path))
    shutil.rmtree(tmp_path / "private")
    before = (release / "privacy.json").read_bytes()
    message = refusal(lambda: finish(tiny(tmp_path)))
    assert str(release) in message
    assert "run_dir" in message
    assert (release / "privacy.json").read_bytes() == before
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_run_rolled_back_behind_its_release_is_neither_trained_on_nor_ended(tmp_path, killed, command):
    """The release is written after the seal: it has left, so what an older private/ would spend is not in it."""
    shutil.copytree(killed / "private", tmp_path / "older")
    finish(tiny(killed))
    shutil.rmtree(killed / "private")
    (tmp_path / "older").rename(killed / "private")
    before = files_of(tmp_path)
    if command == "train":
        message = refusal(lambda: finish(tiny(killed)))
    else:
        message = refusal(lambda: export_run(killed, tmp_path / "out", None, end_run=True))
    assert str(killed / "release") in message
    assert "rolled back" in message
    assert files_of(tmp_path) == before


FOREIGN = {
    "another run of the same config": lambda run_dir, other: swap(run_dir, other, "release"),
    "a private folder of another run": lambda run_dir, other: swap(run_dir, other, "private"),
    "a certificate of another run": lambda run_dir, other: swap(run_dir, other, "release/privacy.json"),
    "weights of another run": lambda run_dir, other: swap(
        run_dir, other, "release/unet/diffusion_pytorch_model.safetensors"
    ),
    "a file that is missing": lambda run_dir, _: (run_dir / "release" / "samples.png").unlink(),
    "a file that was added": lambda run_dir, _: (run_dir / "release" / "notes.txt").write_text(""),
    "no certificate": lambda run_dir, _: (run_dir / "release" / "privacy.json").unlink(),
    "an empty folder": lambda run_dir, _: (shutil.rmtree(run_dir / "release"), (run_dir / "release").mkdir()),
    "a link to nowhere": lambda run_dir, other: (
        shutil.rmtree(run_dir / "release"),
        (run_dir / "release").symlink_to(other / "nowhere"),
    ),
    "shown metrics": lambda run_dir, _: (run_dir / "private" / "metrics_were_shown").touch(),
}


def swap(run_dir: Path, other: Path, name: str) -> None:
    """Exchanges a file or folder of two runs."""
    (run_dir / name).rename(other / "aside")
    (other / name).rename(run_dir / name)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, solve_once: None) -> Path:
    """Two finished runs of one config, each with a secret of its own."""
    place = tmp_path_factory.mktemp("two")
    for name in ("run", "other"):
        run_curriculum(tiny(place / name), one_process())
    return place


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_finished_run_points_to_no_release_but_its_own_and_whole(tmp_path, two_runs, kind):
    shutil.copytree(two_runs, tmp_path / "both")
    run_dir = tmp_path / "both" / "run"
    FOREIGN[kind](run_dir, tmp_path / "both" / "other")
    before = files_of(run_dir)
    message = refusal(lambda: finish(tiny(run_dir)))
    assert str(run_dir / "release") in message
    assert "move it elsewhere" in message
    assert files_of(run_dir) == before
    (run_dir / "release").rename(tmp_path / "away")
    assert verify_release(finish(tiny(run_dir))) == []


def test_a_finished_run_without_checkpoints_is_still_pointed_to(tmp_path, two_runs):
    shutil.copytree(two_runs / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "private" / "checkpoints")
    finish(tiny(tmp_path / "run"))


def test_a_release_that_cannot_be_written_is_told_as_of_a_sealed_run_and_comes_with_the_same_command(
    tmp_path, monkeypatch, capsys
):
    """Every time until it can; then what is printed is there."""

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "_publish", full_disk)
        for _ in range(2):
            message = refusal(lambda: finish(tiny(tmp_path)))
            for needed in ("sealed (planned)", "No space left", "same command again"):
                assert needed in message
            assert not (tmp_path / "release").exists()
    outcome = run_curriculum(tiny(tmp_path), one_process())
    named = [Path(line.split()[-1]) for line in outcome.summary().splitlines()]
    assert len(named) == 3
    assert all(path.exists() for path in named)
