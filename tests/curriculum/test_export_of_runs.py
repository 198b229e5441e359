"""An export ends a run only where it is told to and can, and certifies all that was charged."""

import json
import signal
from pathlib import Path

import pytest
import torch

from curriculumdp.commands import export as export_command
from curriculumdp.curriculum import folder
from curriculumdp.curriculum.ending import ending
from curriculumdp.curriculum.initial import untrained_state
from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release import export
from curriculumdp.release.certificate import CertificateError
from curriculumdp.release.verify import verify_release
from curriculumdp.world import one_process
from tests.support.refused import files_of, refusal
from tests.support.runs import finish, in_child, kill_at, tiny
from tests.support.tiny_release import write_keys


def test_export_ends_a_run_early_and_certifies_the_whole_ledger(tmp_path, killed):
    out = export_run(killed, tmp_path / "out", None, end_run=True)
    certificate = json.loads((out / "privacy.json").read_text())["guarantee"]
    assert certificate["stopped"] == "operator"
    assert {r["name"]: r["count"] for r in certificate["events"]} == {"central": 3, "private": 3}
    assert not (killed / "private" / "secret").exists()
    outcome = run_curriculum(tiny(killed), one_process())
    assert outcome.exit_code == 0


def test_an_ended_run_is_described_with_what_it_spent_and_lost(tmp_path, killed, monkeypatch, capsys):
    """On every path: the command that ends it, and each later export of it."""
    for number, end in enumerate((["--end-run"], [])):
        words = ["export.py", str(killed), "--out", str(tmp_path / f"out{number}"), *end]
        monkeypatch.setattr("sys.argv", words)
        assert export_command.main() == 0
        said = capsys.readouterr().out
        assert said.startswith(
            f"release: {tmp_path / f'out{number}'}\nended for good: {killed} cannot be resumed"
        )
        assert "\nspent: ε = " in said
        assert "lost: 3 of 6 planned events of the private phase\n" in said


def test_a_run_that_is_ended_before_it_learnt_says_that_there_is_no_release(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path / "run")
    in_child(lambda: (kill_at(Ledger, "charge", 1), run_curriculum(config, one_process())))
    words = ["export.py", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--end-run"]
    monkeypatch.setattr("sys.argv", words)
    assert export_command.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("release: none")
    assert "ended for good: " in said
    assert (
        "lost: 3 of 3 planned events of the central phase, 6 of 6 planned events of the private phase\n"
        in said
    )
    assert not (tmp_path / "out").exists()


def test_a_run_that_came_to_its_end_is_not_called_ended(tmp_path):
    finish(tiny(tmp_path / "run"))
    assert ending(tmp_path / "run") == []


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
def test_an_export_that_is_refused_does_not_end_the_run(tmp_path, killed, monkeypatch, kind):
    monkeypatch.chdir(killed)
    out, key, end_run = REFUSED_EXPORTS[kind](tmp_path)
    before = files_of(tmp_path)
    refusal(lambda: export_run(killed, out, key, end_run=end_run))
    assert files_of(tmp_path) == before
    release = finish(tiny(killed))
    assert json.loads((release / "privacy.json").read_text())["guarantee"]["stopped"] == "planned"


def test_an_accounting_that_fails_does_not_end_the_run(tmp_path, killed, monkeypatch):

    def costs_too_much(_: object) -> None:
        raise CertificateError("the events cost more than is promised")

    with monkeypatch.context() as patch:
        patch.setattr(export, "account", costs_too_much)
        refusal(lambda: export_run(killed, tmp_path / "out", None, end_run=True))
    assert Ledger.read(killed / "private").sealed is None
    assert (killed / "private" / "secret").exists()


def test_the_refusal_to_end_a_run_says_what_it_would_do(tmp_path, killed):
    message = refusal(lambda: export_run(killed, tmp_path / "out", None))
    for needed in (str(killed), "6 of 9", "permanently", "--end-run"):
        assert needed in message


ENDS = {
    "before the seal": lambda: kill_at(Ledger, "seal", 1),
    "sealed, the secret not erased": lambda: kill_at(folder, "erase_private", 1),
    "sealed, not at its place": lambda: kill_at(export, "replace_folder", 1),
    "at its place": lambda: kill_at(export, "replace_folder", 1, after=True),
}


@pytest.mark.parametrize("moment", ENDS)
def test_an_export_that_was_killed_is_made_up_for_by_the_same_command(tmp_path, killed, moment):
    def ended() -> None:
        export_run(killed, tmp_path / "out", None, end_run=True)

    def killed_again() -> None:
        ENDS[moment]()
        ended()

    assert in_child(killed_again) == -signal.SIGKILL
    ended()
    assert not (killed / "private" / "secret").exists()
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
    given = untrained_state(tiny(tmp_path / "run"), torch.device("cpu")).net
    given.save_pretrained(tmp_path / "pictures of flowers" / "unet")
    release = finish(tiny(tmp_path / "run", init_from=str(tmp_path / "pictures of flowers")))
    public = json.loads((release / "privacy.json").read_text())["guarantee"]["public"]
    assert public["initial_weights"] == "pictures of flowers"


def test_a_folder_without_a_run_cannot_be_exported(tmp_path):
    assert str(tmp_path) in refusal(lambda: export_run(tmp_path, tmp_path / "out", None))
