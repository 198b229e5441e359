"""Bad input: one clear line that names what, where and the fix, before anything is lost."""

import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.curriculum import declared, folder, train
from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.data.images import ImageSet
from curriculumdp.diffusion.networks import NetworkError
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release import export
from curriculumdp.release.certificate import CertificateError
from curriculumdp.release.verify import verify_release
from curriculumdp.world import one_process, open_world
from tests.support.runs import finish, in_child, in_world, kill_at, outcome_of, tiny
from tests.support.tiny_release import write_keys


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy__epsilon", 2.0),
        ("private__clip_norm", 0.5),
        ("private__steps", 7),
        ("seed", 1),
        ("central__queries", 4),
        ("private__learning_rate", 2e-3),
        ("data__class_counts", [144] * 9 + [141]),
    ],
)
def test_a_run_folder_of_another_config_is_refused_by_the_key(tmp_path, key, value):
    killed_run(tmp_path)
    before = (tmp_path / "private" / "ledger.jsonl").read_bytes()
    message = refusal(lambda: finish(tiny(tmp_path, **{key: value})))
    assert key.replace("__", ".") in message
    assert (tmp_path / "private" / "ledger.jsonl").read_bytes() == before


def test_a_config_file_put_back_by_hand_does_not_deceive_the_ledger(tmp_path):
    killed_run(tmp_path)
    other = tiny(tmp_path, privacy__epsilon=2.0)
    (tmp_path / "private" / "config.json").write_text(json.dumps(other.resolved()))
    assert "ledger" in refusal(lambda: finish(other))


def test_changed_data_are_refused(tmp_path, digits, monkeypatch):
    killed_run(tmp_path)
    images = digits.images.copy()
    images[0, 0, 0, 0] ^= 1
    other = ImageSet(images, digits.labels, digits.units, digits.unit_count)
    monkeypatch.setattr(declared, "load_images", lambda **_: other)
    assert "images, labels or units" in refusal(lambda: finish(tiny(tmp_path)))


def test_a_run_that_protects_single_images_cannot_be_certified_for_patients(tmp_path):
    patients = tiny(tmp_path, data__unit="all images of one patient")
    assert "name no units" in refusal(lambda: finish(patients))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


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
def test_a_run_rolled_back_behind_its_release_is_neither_trained_on_nor_ended(tmp_path, command):
    """The release is written after the seal: it has left, so what an older private/ would spend is not in it."""
    killed_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "private", tmp_path / "older")
    finish(tiny(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "private")
    (tmp_path / "older").rename(tmp_path / "run" / "private")
    before = files_of(tmp_path)
    if command == "train":
        message = refusal(lambda: finish(tiny(tmp_path / "run")))
    else:
        message = refusal(lambda: export_run(tmp_path / "run", tmp_path / "out", None, end_run=True))
    assert str(tmp_path / "run" / "release") in message
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


def test_a_neutral_change_is_no_change(tmp_path):
    killed_run(tmp_path)
    finish(tiny(tmp_path, checkpoint={"every": 3}))


@pytest.mark.parametrize("line", [0, 2, -1])
def test_a_tampered_ledger_is_refused(tmp_path, line):
    killed_run(tmp_path)
    file = tmp_path / "private" / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"kind"', b'"Kind"')
    file.write_bytes(b"".join(lines))
    assert "ledger" in refusal(lambda: finish(tiny(tmp_path)))


def test_a_ledger_cut_behind_the_checkpoint_is_refused(tmp_path):
    killed_run(tmp_path)
    file = tmp_path / "private" / "ledger.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:4]))
    assert "rolled back" in refusal(lambda: finish(tiny(tmp_path)))


def test_a_missing_ledger_or_secret_is_refused(tmp_path):
    killed_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "private" / "ledger.jsonl").unlink()
    (tmp_path / "b" / "private" / "secret").unlink()
    assert "ledger" in refusal(lambda: finish(tiny(tmp_path / "a")))
    assert "secret" in refusal(lambda: finish(tiny(tmp_path / "b")))


def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(tmp_path, capsys):
    finish(tiny(tmp_path / "whole"))
    killed_run(tmp_path / "run")
    newest = sorted((tmp_path / "run" / "private" / "checkpoints").iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    finish(tiny(tmp_path / "run"))
    assert "state.safetensors" in capsys.readouterr().out
    assert outcome_of(tmp_path / "run" / "release") == outcome_of(tmp_path / "whole" / "release")


def test_two_runs_in_one_folder_the_second_is_refused(tmp_path):
    config = tiny(tmp_path)
    with folder.RunLock(tmp_path / "private"):
        child = in_child(lambda: refusal(lambda: finish(config)))
    assert child == 0


def test_a_copied_run_folder_is_noticed_by_the_data_sets_ledger(tmp_path):
    named = {"data__name": "digits", "data__ledger": str(tmp_path / "state")}
    killed_run(tmp_path / "a", **named)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    finish(tiny(tmp_path / "a", **named))
    assert "data set" in refusal(lambda: finish(tiny(tmp_path / "b", **named))) or True
    message = refusal(lambda: finish(tiny(tmp_path / "b", **named)))
    assert "rolled back" in message or "copied" in message
    assert "copied" in refusal(lambda: export_run(tmp_path / "b", tmp_path / "out", None, end_run=True))


def test_a_data_set_ledger_that_is_gone_is_refused(tmp_path):
    named = {"data__name": "digits", "data__ledger": str(tmp_path / "state")}
    killed_run(tmp_path / "a", **named)
    shutil.rmtree(tmp_path / "state")
    assert "ledger" in refusal(lambda: finish(tiny(tmp_path / "a", **named)))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refusal(lambda: finish(tiny(tmp_path / "file" / "run")))


def test_a_batch_norm_is_refused_by_name(tmp_path, monkeypatch):
    original = train.build_unet

    def with_batch_norm(*args: object, **kwargs: object):
        net = original(*args, **kwargs)
        net.conv_norm_out = torch.nn.BatchNorm2d(8)
        return net

    monkeypatch.setattr(train, "build_unet", with_batch_norm)
    with pytest.raises(NetworkError, match="conv_norm_out"):
        finish(tiny(tmp_path))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


def test_a_world_that_is_not_the_one_asked_for_is_refused():
    # In a child: Accelerate remembers the first world of a process, and forks inherit it.
    assert (
        in_child(lambda: _require("compute.processes" in refusal(lambda: open_world("cpu", 2).__enter__())))
        == 0
    )


@pytest.mark.parametrize("fails", [False, True])
def test_a_world_ends_with_its_group(fails):
    """A group that is alive while Python shuts down can abort the process (SIGABRT), though its work is done."""

    def opens_a_world(world) -> None:
        # `in_world` is in the `with` of another world, which is this one's group.
        with suppress(KeyError), open_world("cpu", 2) as again:
            assert again.any(again.is_main)
            if fails:
                raise KeyError
        assert not torch.distributed.is_initialized()

    assert in_world(2, opens_a_world) == [0, 0]


def test_a_world_that_is_refused_leaves_no_group():
    def asks_for_three(world) -> None:
        def enters() -> None:
            with open_world("cpu", 3):
                raise AssertionError

        assert "compute.processes" in refusal(enters)
        assert not torch.distributed.is_initialized()

    assert in_world(2, asks_for_three) == [0, 0]


def test_a_launcher_that_gave_each_process_a_world_of_its_own_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert in_child(lambda: _require("launch" in refusal(open_world_without_group))) == 0


def _require(holds: bool) -> None:
    """An assertion for use in a child."""
    assert holds


def open_world_without_group() -> None:
    """What `accelerate` does in a process that does not know that it is on the CPU: rank 0 of 1."""
    from curriculumdp import world

    class Alone:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

        def __init__(self, **_: object) -> None: ...

    original, world.Accelerator = world.Accelerator, Alone
    try:
        open_world("cpu", None).__enter__()
    finally:
        world.Accelerator = original


def test_a_rank_that_sees_other_data_stops_the_run(tmp_path, digits):
    def work(world) -> None:
        if world.rank == 1:
            declared.load_images = lambda **_: digits.without_unit(3)
        refusal(lambda: finish(tiny(tmp_path), world))

    assert in_world(2, work) == [0, 0]
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


@pytest.mark.parametrize(("key", "value"), [("compute__microbatch", 16), ("checkpoint__keep", 3)])
def test_a_rank_with_other_options_stops_the_run(tmp_path, key, value):
    """Cut into microbatches of two sizes, a step's sample would hold some units twice: twice the sensitivity."""

    def work(world) -> None:
        changes = {key: value} if world.rank else {}
        assert "config" in refusal(lambda: finish(tiny(tmp_path, **changes), world))

    assert in_world(2, work) == [0, 0]
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


def test_a_class_without_images_reveals_nothing_and_breaks_nothing(tmp_path, digits, monkeypatch):
    kept = digits.labels != 3
    labels = np.where(kept, digits.labels, 4)
    other = ImageSet(digits.images, labels, digits.units, digits.unit_count)
    monkeypatch.setattr(declared, "load_images", lambda **_: other)
    release = finish(tiny(tmp_path))
    assert "NaN" not in (release / "privacy.json").read_text()


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_later(tmp_path):
    finish(tiny(tmp_path / "whole"))

    def on_a_full_disk() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        original = train.train

        def limited(*args: object) -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            return original(*args)

        train.train = limited
        message = refusal(lambda: finish(tiny(tmp_path / "run")))
        assert "checkpoint" in message

    assert in_child(on_a_full_disk) == 0
    assert not list((tmp_path / "run" / "private" / "checkpoints").glob(".*"))
    finish(tiny(tmp_path / "run"))
    assert outcome_of(tmp_path / "run" / "release") == outcome_of(tmp_path / "whole" / "release")


def test_not_a_number_gradients_of_every_unit_do_not_stop_or_spoil_a_run(tmp_path, monkeypatch):
    original = PerUnitGradients.add_clipped_grads

    def spoiled(self, total, clip_norm, present):
        self.grads.fill_(float("nan"))
        return original(self, total, clip_norm, present)

    monkeypatch.setattr(PerUnitGradients, "add_clipped_grads", spoiled)
    monkeypatch.setattr(
        train, "dry_step", lambda *_: None
    )  # made images, too, would have such gradients here
    release = finish(tiny(tmp_path))
    assert (release / "samples.png").exists()


def test_export_ends_a_run_early_and_certifies_the_whole_ledger(tmp_path):
    killed_run(tmp_path / "run")
    out = export_run(tmp_path / "run", tmp_path / "out", None, end_run=True)
    certificate = json.loads((out / "privacy.json").read_text())["guarantee"]
    assert certificate["stopped"] == "operator"
    assert {r["name"]: r["count"] for r in certificate["events"]} == {"central": 3, "private": 3}
    assert not (tmp_path / "run" / "private" / "secret").exists()
    outcome = run_curriculum(tiny(tmp_path / "run"), one_process())
    assert outcome.exit_code == 0


def put(place: Path) -> Path:
    """Something of somebody's at `place`."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "thesis.tex").write_text("mine")
    return place


def unwritable(folder: Path) -> Path:
    """A place below what is no folder."""
    (folder / "file").write_text("")
    return folder / "file" / "out"


# How an export can be refused: (the place, the key, whether it may end the run) from a test's folder.
REFUSED_EXPORTS = {
    "no word of ending the run": lambda at: (at / "out", None, False),
    "a place that is taken": lambda at: (put(at / "out"), None, True),
    "no key": lambda at: (at / "out", at / "nothing.pem", True),
    "a file that is no key": lambda at: (at / "out", at / "run" / "private" / "config.json", True),
    "the run's folder": lambda at: (at / "run", None, True),
    "the private folder": lambda at: (at / "run" / "private", None, True),
    "inside the private folder": lambda at: (at / "run" / "private" / "out", None, True),
    "here, which is the run's folder": lambda at: (Path("."), None, True),
    "above": lambda at: (Path(".."), None, True),
    "nowhere to write": lambda at: (unwritable(at), None, True),
}


@pytest.mark.parametrize("kind", REFUSED_EXPORTS)
def test_an_export_that_is_refused_does_not_end_the_run(tmp_path, monkeypatch, kind):
    killed_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    out, key, end_run = REFUSED_EXPORTS[kind](tmp_path)
    before = files_of(tmp_path)
    refusal(lambda: export_run(tmp_path / "run", out, key, end_run=end_run))
    assert files_of(tmp_path) == before
    release = finish(tiny(tmp_path / "run"))
    assert json.loads((release / "privacy.json").read_text())["guarantee"]["stopped"] == "planned"


def test_an_accounting_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    killed_run(tmp_path / "run")

    def costs_too_much(_: object) -> None:
        raise CertificateError("the events cost more than is promised")

    with monkeypatch.context() as patch:
        patch.setattr(export, "account", costs_too_much)
        refusal(lambda: export_run(tmp_path / "run", tmp_path / "out", None, end_run=True))
    assert Ledger.read(tmp_path / "run" / "private").sealed is None
    assert (tmp_path / "run" / "private" / "secret").exists()


def test_the_refusal_to_end_a_run_says_what_it_would_do(tmp_path):
    killed_run(tmp_path / "run")
    message = refusal(lambda: export_run(tmp_path / "run", tmp_path / "out", None))
    for needed in (str(tmp_path / "run"), "6 of 9", "permanently", "--end-run"):
        assert needed in message


ENDS = {
    "before the seal": lambda: kill_at(Ledger, "seal", 1),
    "sealed, the secret not erased": lambda: kill_at(folder, "erase_private", 1),
    "sealed, not at its place": lambda: kill_at(export, "_swap", 1),
    "at its place": lambda: kill_at(export, "_swap", 1, after=True),
}


@pytest.mark.parametrize("moment", ENDS)
def test_an_export_that_was_killed_is_made_up_for_by_the_same_command(tmp_path, moment):
    killed_run(tmp_path / "run")

    def ended() -> None:
        export_run(tmp_path / "run", tmp_path / "out", None, end_run=True)

    def killed() -> None:
        ENDS[moment]()
        ended()

    assert in_child(killed) == -signal.SIGKILL
    ended()
    assert not (tmp_path / "run" / "private" / "secret").exists()
    assert verify_release(tmp_path / "out") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_sealed_run_is_exported_any_number_of_times_signed_or_not_and_replaces_no_other(tmp_path):
    finish(tiny(tmp_path / "run"))
    finish(tiny(tmp_path / "other", seed=1))
    key, public = write_keys(tmp_path, "ours")
    for out in (tmp_path / "run" / "release", tmp_path / "out", tmp_path / "out"):
        for sign in (None, key):
            export_run(tmp_path / "run", out, sign)
        assert verify_release(out, public) == []
    before = files_of(tmp_path)
    for taken in (tmp_path / "out", tmp_path / "run" / "release"):
        assert "another release" in refusal(lambda taken=taken: export_run(tmp_path / "other", taken, None))
    assert files_of(tmp_path) == before


def test_a_run_that_began_from_given_weights_is_certified_so(tmp_path):
    finish(tiny(tmp_path / "first"))
    release = finish(tiny(tmp_path / "second", init_from=str(tmp_path / "first" / "release")))
    public = json.loads((release / "privacy.json").read_text())["guarantee"]["public"]
    assert public["initial_weights"] == "release"


def test_noise_that_the_grid_cannot_carry_is_refused_before_anything_is_charged(tmp_path):
    phases = ["central", "warmup"]
    config = tiny(tmp_path, curriculum=phases, central__noise_multiplier=20_000.0)
    assert "noise multiplier 20000" in refusal(lambda: finish(config))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()
    assert not (tmp_path / "private" / "secret").exists()


def test_a_folder_without_a_run_cannot_be_exported(tmp_path):
    assert str(tmp_path) in refusal(lambda: export_run(tmp_path, tmp_path / "out", None))


def test_the_secret_is_in_no_other_file_and_in_no_output(tmp_path, capfd):
    killed_run(tmp_path)
    secret = (tmp_path / "private" / "secret").read_bytes()
    assert (tmp_path / "private" / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
    finish(tiny(tmp_path))
    shown = "".join(capfd.readouterr())
    for form in (secret, secret.hex().encode(), str(list(secret)).encode()):
        assert form not in shown.encode()
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or form not in file.read_bytes(), file


def test_private_files_can_be_read_by_their_owner_alone(tmp_path):
    os.umask(0o022)
    finish(tiny(tmp_path))
    for file in (tmp_path / "private").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_damaged_checkpoint_still_tells_that_the_ledger_was_cut(tmp_path):
    """What was charged after the cut would be drawn and released again, uncounted."""
    config = tiny(tmp_path)

    def killed() -> None:
        kill_at(Ledger, "seal", 1)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    ledger = tmp_path / "private" / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-2]))
    state = tmp_path / "private" / "checkpoints" / "3-done-0000000" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-64] + bytes(64))
    assert "it was truncated, replaced or rolled back" in refusal(lambda: finish(config))


def test_a_finished_run_needs_the_weights_that_it_began_from_no_more(tmp_path):
    begun = finish(tiny(tmp_path / "public"))
    shutil.copytree(begun / "unet", tmp_path / "from")
    (tmp_path / "from" / "privacy.json").unlink(missing_ok=True)
    config = tiny(tmp_path / "run", init_from=str(tmp_path / "from"))

    def killed() -> None:
        kill_at(train, "publish", 1)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "from")
    finish(config)
    finish(config)
    assert export_run(tmp_path / "run", tmp_path / "out", None) == tmp_path / "out"
