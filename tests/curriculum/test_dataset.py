"""Who makes a data set's ledger, and how a run ends without it."""

import shutil
import signal
from pathlib import Path

import pytest

from curriculumdp.config.config import Config, config_from
from curriculumdp.curriculum import train
from curriculumdp.curriculum.dataset import attach, create, described
from curriculumdp.curriculum.folder import RunFolder
from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.data.images import ImageSet
from curriculumdp.ledger.dataset_ledger import DatasetLedger, NoRoom
from curriculumdp.ledger.mirror import RunMirror
from curriculumdp.ledger.run_ledger import Ledger, LedgerError
from curriculumdp.world import one_process
from tests.curriculum import test_folder
from tests.support.refused import refusal
from tests.support.runs import finish, in_child, kill_at, tiny
from tests.support.small_run import without_solving


@pytest.fixture(autouse=True)
def _quick():
    with without_solving():
        yield


def opened(config: Config, images: ImageSet) -> RunFolder:
    with without_solving():  # also where the fixture is not there: these tests look for planted faults too
        return test_folder.opened(config, images)[0]


def named(run_dir: Path, state: Path, budget: float | None = None, **changes: object) -> Config:
    data = {"data__name": "wards", "data__ledger": str(state), "data__budget": budget}
    return tiny(run_dir, **data, **changes)


def left(config: Config) -> float:
    shared = DatasetLedger.find(Path(str(config.data.ledger)), definition(config))
    assert shared is not None
    share = shared.share_left()
    assert share is not None
    return share


def definition(config: Config) -> dict[str, object]:
    data = config.data
    return {"unit": data.unit, "units": data.units, "delta": config.privacy.delta, "budget": data.budget}


def test_a_ledger_without_a_budget_is_made_by_the_first_run_which_says_so_once(tmp_path, digits, capsys):
    line = f"no earlier run on 'wards' is recorded in {tmp_path / 'state'}: created a new ledger"
    opened(named(tmp_path / "one", tmp_path / "state"), digits)
    assert line in capsys.readouterr().out.splitlines()
    opened(named(tmp_path / "two", tmp_path / "state"), digits)
    assert "created a new ledger" not in capsys.readouterr().out


@pytest.mark.parametrize("home", ["one", "two"])
def test_a_run_with_a_budget_makes_no_ledger_wherever_it_looks(tmp_path, digits, monkeypatch, home):
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    config = tiny(tmp_path / "run", data__name="wards", data__budget=5.0)
    message = refusal(lambda: opened(config, digits))
    assert "launch/budget.py CONFIG --create" in message
    assert str(tmp_path / home) in message
    assert not (tmp_path / home).exists()
    assert not (tmp_path / "run" / "private" / "ledger.jsonl").exists()
    assert "created a new ledger with data.budget = 5" in create(config)
    opened(config, digits)


def test_a_ledger_that_no_run_has_used_is_defined_anew_and_one_in_use_is_not(tmp_path, digits):
    state = tmp_path / "state"
    for budget, delta in ((4.0, 1e-4), (5.0, 1e-5), (5.0, 1e-4)):
        config = named(tmp_path / "run", state, budget, privacy__delta=delta)
        assert "created a new ledger" in create(config)
    assert "already exists" in create(config)
    with pytest.raises(LedgerError, match=r"budget is 6.0 here and 5.0 .*--create: no run has used it"):
        opened(named(tmp_path / "run", state, 6.0), digits)
    with pytest.raises(LedgerError, match=r"budget is None here and 5\.0"):
        opened(named(tmp_path / "run", state), digits)
    opened(config, digits)
    with pytest.raises(LedgerError, match="it can no longer change"):
        create(named(tmp_path / "run", state, 6.0))


def test_without_a_budget_a_run_defines_a_ledger_anew_that_none_has_used(tmp_path, digits):
    state = tmp_path / "state"
    DatasetLedger.open(state, definition(named(tmp_path, state, privacy__delta=1e-5)))
    opened(named(tmp_path / "run", state), digits)
    with pytest.raises(LedgerError, match=r"delta is 1e-05 here and 0\.0001"):
        opened(named(tmp_path / "other", state, privacy__delta=1e-5), digits)


def test_a_run_that_is_refused_for_want_of_room_leaves_its_folder_to_another(tmp_path, digits):
    """Also where a kill, or a run that began at once, came between its own ledger and its reservation."""
    state = tmp_path / "state"
    create(named(tmp_path, state, 3.0))
    config = named(tmp_path / "one", state, 3.0, private__steps=400)

    def killed() -> None:
        kill_at(RunMirror, "create", 1)
        opened(config, digits)

    assert in_child(killed) == -signal.SIGKILL
    assert (tmp_path / "one" / "private" / "ledger.jsonl").exists()
    opened(named(tmp_path / "two", state, 3.0, private__steps=400), digits)
    with pytest.raises(NoRoom):
        opened(config, digits)
    opened(named(tmp_path / "one", state, 3.0, private__steps=2), digits)


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_run_killed_between_its_seal_and_its_giving_back_is_settled_by_the_next_command(tmp_path, command):
    config = named(tmp_path / "run", tmp_path / "state", 5.0)
    create(config)

    def killed() -> None:
        kill_at(RunMirror, "end", 1)
        export_run(tmp_path / "run", tmp_path / "out", None, end_run=True)

    killed_run_of(config)
    assert in_child(killed) == -signal.SIGKILL
    before = left(config)
    if command == "train":
        assert run_curriculum(config, one_process()).exit_code == 0
    else:
        export_run(tmp_path / "run", tmp_path / "out", None, end_run=True)
    assert left(config) > before
    assert "sealed" in described(config)


def killed_run_of(config: Config) -> None:
    def killed() -> None:
        kill_at(Ledger, "charge", 6, after=True)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL


def test_a_sealed_run_is_exported_without_its_data_sets_ledger_and_makes_none(tmp_path, capsys):
    state = tmp_path / "state"
    finish(named(tmp_path / "run", state))
    shutil.rmtree(state)
    export_run(tmp_path / "run", tmp_path / "out", None, end_run=True)
    assert f"warning: {state}: the data set's ledger is missing" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run" / "release")
    assert run_curriculum(named(tmp_path / "run", state), one_process()).exit_code == 0
    assert (tmp_path / "run" / "release" / "privacy.json").exists()
    assert not state.exists()


@pytest.mark.parametrize("command", ["train", "export"])
def test_an_unsealed_run_that_has_spent_is_refused_without_its_ledger_and_makes_none(tmp_path, command):
    state = tmp_path / "state"
    config = named(tmp_path / "run", state)
    killed_run_of(config)
    shutil.rmtree(state)
    work = {
        "train": lambda: finish(config),
        "export": lambda: export_run(tmp_path / "run", tmp_path / "out", None, end_run=True),
    }[command]
    assert "is missing" in refusal(work)
    assert not state.exists()
    assert not (tmp_path / "out").exists()


def test_a_copy_that_sealed_itself_after_the_other_was_resumed_gets_no_release(tmp_path):
    config = named(tmp_path / "run", tmp_path / "state")
    killed_run_of(config)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")

    def killed() -> None:
        kill_at(Ledger, "charge", 1, after=True)
        kill_at(RunMirror, "advance", 2)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    ledger = Ledger.open(tmp_path / "copy" / "private", secret_of(tmp_path / "copy"), {}, None)
    ledger.seal("operator")  # unmirrored, as if its mirror had refused it
    ledger.close()
    finish(config)
    assert "a copy of it was resumed" in refusal(lambda: finish(named(tmp_path / "copy", tmp_path / "state")))
    assert not (tmp_path / "copy" / "release").exists()


def secret_of(run_dir: Path) -> train.RunSecret:
    return train.RunSecret.load(run_dir / "private" / "secret")


def test_what_all_runs_cost_and_what_is_left_is_shown(tmp_path, digits):
    limited = named(tmp_path / "a", tmp_path / "limited", 5.0)
    create(limited)
    held = opened(limited, digits)
    *_, one, total, rest, room = described(limited).splitlines()
    assert one.split()[:2] == [held.ledger.run, "unfinished"]
    assert one.split()[2:] == total.split()[2:]
    assert f"{left(limited):.2%}" in rest
    assert room.startswith("a new run of this config")
    free = named(tmp_path / "b", tmp_path / "free")
    for name in ("b", "c"):
        opened(named(tmp_path / name, tmp_path / "free"), digits)
    *_, first, second, together, note = described(free).splitlines()
    single = float(first.split()[-1])
    assert single == float(second.split()[-1]) <= 3
    assert single < float(together.split()[-1]) < 2 * single
    assert "data.budget is not set" in note


@pytest.mark.parametrize("work", [create, described])
def test_a_data_set_without_a_name_has_no_ledger_to_show(tmp_path, work):
    assert "data.name is missing" in refusal(lambda: work(tiny(tmp_path)))
    nowhere = named(tmp_path, tmp_path / "state")
    assert "--create" in refusal(lambda: described(nowhere))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("place", ["state", "./state", "~/state", "~", "", "$HOME/state", "../state"])
def test_a_ledger_whose_place_depends_on_where_a_run_is_started_is_refused(tmp_path, place):
    for budget in (None, 5.0):
        message = refusal(
            lambda b=budget: config_from(
                named(tmp_path, Path("/x"), b).resolved()
                | {"data": named(tmp_path, Path("/x"), b).resolved()["data"] | {"ledger": place}},
                "test",
            )
        )
        assert f"data.ledger is {place!r}" in message
        assert "absolute path" in message


def test_a_run_without_a_named_data_set_is_attached_to_nothing(tmp_path, digits):
    held = opened(tiny(tmp_path), digits)
    attach(tiny(tmp_path), held.ledger, None)
    assert held.ledger.mirror is None


@pytest.mark.parametrize("kill", [1, 2])
def test_a_run_that_has_nothing_to_export_is_ended_and_gives_back_what_it_reserved(tmp_path, kill):
    config = named(tmp_path / "run", tmp_path / "state", 5.0, checkpoint__every=100)
    create(config)

    def killed() -> None:
        kill_at(Ledger, "charge", kill)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    before = left(config)
    with pytest.raises(ValueError, match="--end-run"):
        export_run(tmp_path / "run", tmp_path / "out", None)
    assert left(config) == before
    assert export_run(tmp_path / "run", tmp_path / "out", None, end_run=True) is None
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run" / "private" / "secret").exists()
    assert left(config) > before
    assert "sealed" in described(config)
