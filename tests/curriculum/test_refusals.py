"""Bad input: one clear line that names what, where and the fix, before anything is lost."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.curriculum import declared, folder, initial, train
from curriculumdp.curriculum.train import export_run
from curriculumdp.data.images import ImageSet
from curriculumdp.diffusion.networks import NetworkError
from curriculumdp.ledger.run_ledger import Ledger
from tests.support.refused import killed_run, refusal
from tests.support.runs import finish, in_child, kill_at, outcome_of, tiny


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
def test_a_run_folder_of_another_config_is_refused_by_the_key(killed, key, value):
    before = (killed / "private" / "ledger.jsonl").read_bytes()
    message = refusal(lambda: finish(tiny(killed, **{key: value})))
    assert key.replace("__", ".") in message
    assert (killed / "private" / "ledger.jsonl").read_bytes() == before


def test_a_config_file_put_back_by_hand_does_not_deceive_the_ledger(killed):
    other = tiny(killed, privacy__epsilon=2.0)
    (killed / "private" / "config.json").write_text(json.dumps(other.resolved()))
    assert "ledger" in refusal(lambda: finish(other))


def test_changed_data_are_refused(killed, digits, monkeypatch):
    images = digits.images.copy()
    images[0, 0, 0, 0] ^= 1
    other = ImageSet(images, digits.labels, digits.units, digits.unit_count)
    monkeypatch.setattr(declared, "load_images", lambda **_: other)
    assert "images, labels or units" in refusal(lambda: finish(tiny(killed)))


def test_a_run_that_protects_single_images_cannot_be_certified_for_patients(tmp_path):
    patients = tiny(tmp_path, data__unit="all images of one patient")
    assert "name no units" in refusal(lambda: finish(patients))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


def test_a_neutral_change_is_no_change(killed):
    finish(tiny(killed, checkpoint={"every": 3}))


@pytest.mark.parametrize("line", [0, 2, -1])
def test_a_tampered_ledger_is_refused(killed, line):
    file = killed / "private" / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"kind"', b'"Kind"')
    file.write_bytes(b"".join(lines))
    assert "ledger" in refusal(lambda: finish(tiny(killed)))


def test_a_ledger_cut_behind_the_checkpoint_is_refused(killed):
    file = killed / "private" / "ledger.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:4]))
    assert "rolled back" in refusal(lambda: finish(tiny(killed)))


def test_a_missing_ledger_or_secret_is_refused(tmp_path, killed):
    shutil.copytree(killed, tmp_path / "b")
    (killed / "private" / "ledger.jsonl").unlink()
    (tmp_path / "b" / "private" / "secret").unlink()
    assert "ledger" in refusal(lambda: finish(tiny(killed)))
    assert "secret" in refusal(lambda: finish(tiny(tmp_path / "b")))


def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(tmp_path, killed, capsys):
    finish(tiny(tmp_path / "whole"))
    newest = sorted((killed / "private" / "checkpoints").iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    finish(tiny(killed))
    assert "state.safetensors" in capsys.readouterr().out
    assert outcome_of(killed / "release") == outcome_of(tmp_path / "whole" / "release")


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
    original = initial.build_unet

    def with_batch_norm(*args: object, **kwargs: object):
        net = original(*args, **kwargs)
        net.conv_norm_out = torch.nn.BatchNorm2d(8)
        return net

    monkeypatch.setattr(initial, "build_unet", with_batch_norm)
    with pytest.raises(NetworkError, match="conv_norm_out"):
        finish(tiny(tmp_path))
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


def test_noise_that_the_grid_cannot_carry_is_refused_before_anything_is_charged(tmp_path):
    phases = ["central", "warmup"]
    config = tiny(tmp_path, curriculum=phases, central__noise_multiplier=20_000.0)
    assert "noise multiplier 20000" in refusal(lambda: finish(config))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()
    assert not (tmp_path / "private" / "secret").exists()


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
