"""Trackers get what is public, whatever a run computes, unless the config and the certificate say otherwise."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from curriculumdp import tracking
from curriculumdp.curriculum import train
from curriculumdp.curriculum.dry_step import DryStepError
from curriculumdp.tracking import TrackerError, Trackers
from tests.support.runs import finish, tiny

PUBLIC_KEYS = {"phase", "step", "epsilon", "learning_rate"}
STEPS = {"central": 3, "warmup": 4, "private": 1000}


class Stub(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory, main_process_only = "stub", False, False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.open = False

    @property
    def tracker(self) -> object:
        return self.rows

    def start(self) -> None:
        self.open = True

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config |= values

    def log(self, values: dict[str, Any], step: int | None = None, **_: object) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.open = False


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    monkeypatch.setattr(tracking, "_made", lambda name, run, folder: made)
    monkeypatch.setattr("curriculumdp.curriculum.dry_step.missing", lambda names: None)
    return made


def tracked_run(place: Path, **logging: object) -> dict[str, Any]:
    """A run with a tracker; the certificate's guarantee."""
    release = finish(tiny(place / "a secret place", logging={"trackers": ["wandb"], **logging}))
    guarantee: dict[str, Any] = json.loads((release / "privacy.json").read_text())["guarantee"]
    return guarantee


def test_nothing_private_reaches_a_tracker(tmp_path, stub):
    assert not tracked_run(tmp_path)["private_metrics_shown"]
    assert [step for step, _ in stub.rows] == list(range(1, 14))
    for _, row in stub.rows:
        assert set(row) - {"learning_rate"} == PUBLIC_KEYS - {"learning_rate"}
    logged = [json.loads(line) for line in (tmp_path / "a secret place/private/metrics.jsonl").open()]
    private = {
        value
        for line in logged
        for key, value in line.items()
        if key not in ("phase", "step", "epsilon") and isinstance(value, float) and value
    }
    assert len(private) > 20
    assert not private & {value for _, row in stub.rows for value in row.values()}
    assert [row["epsilon"] for _, row in stub.rows] == [line["epsilon"] for line in logged]
    assert [row["phase"] for _, row in stub.rows] == [1] * 3 + [2] * 4 + [3] * 6
    assert {row.get("learning_rate") for _, row in stub.rows} == {None, 1e-3}
    assert not stub.open


def test_a_tracker_is_told_the_options_without_paths(tmp_path, stub):
    tracked_run(tmp_path)
    assert stub.config["privacy.epsilon"] == 3
    assert "run_dir" not in stub.config
    assert "secret" not in json.dumps(stub.config)
    assert all(isinstance(value, bool | int | float | str) for value in stub.config.values())


def test_private_metrics_that_a_tracker_gets_are_certified_as_shown(tmp_path, stub):
    guarantee = tracked_run(tmp_path, track_private_metrics=True)
    assert guarantee["private_metrics_shown"]
    assert {key for _, row in stub.rows for key in row} >= {"private/loss", "private/norm", "private/units"}


def test_rows_are_due_at_places_that_depend_on_no_batch():
    stub = Stub()
    trackers = Trackers([stub], STEPS, lambda phase, step: None)
    for step in range(1, 1001):
        trackers.step("private", step, 1.0, {"units": float(step)})
    assert [row["step"] for _, row in stub.rows] == list(range(10, 1001, 10))
    assert stub.rows[-1][0] == 1007


def test_a_value_that_is_not_finite_does_not_reach_a_tracker():
    stub = Stub()
    Trackers([stub], STEPS, lambda phase, step: None, private=True).step(
        "warmup", 1, 1.0, {"loss": float("nan")}
    )
    assert "warmup/loss" not in stub.rows[0][1]


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_on_the_way_ends_no_run(tmp_path, stub, monkeypatch, capsys, fails):
    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(stub, fails, gone)
    tracked_run(tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "stub is not told any more" in line]
    assert len(said) == 1
    assert "ConnectionError: no route to host" in said[0]


def test_a_tracker_that_does_not_start_is_one_line_and_nothing_is_charged(tmp_path, stub, monkeypatch):
    def no_key() -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(stub, "start", no_key)
    with pytest.raises(TrackerError, match=r"logging\.trackers: wandb does not start .*api_key") as caught:
        tracked_run(tmp_path)
    assert "\n" not in str(caught.value)
    ledger = (tmp_path / "a secret place/private/ledger.jsonl").read_text()
    assert '"kind": "charge"' not in ledger
    assert '"kind":"charge"' not in ledger


@pytest.mark.parametrize("name", [*tracking.MODULES])
def test_a_trackers_package_that_is_missing_is_named_before_there_is_a_ledger(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, tracking.MODULES[name], None)
    with pytest.raises(DryStepError, match=rf"logging\.trackers has {name}.*'\.\[{name}\]'"):
        finish(tiny(tmp_path, logging={"trackers": [name]}))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("logging", "words"),
    [
        ({"trackers": ["wandb", "wandb"]}, "list each tracker once"),
        ({"trackers": ["clearml"]}, "logging.trackers"),
        ({"trackers": "wandb"}, "logging.trackers"),
        ({"track_private_metrics": True}, "without logging.trackers"),
    ],
)
def test_trackers_that_cannot_be_meant_are_refused(logging, words):
    with pytest.raises(ValueError, match=words):
        tiny(Path("nowhere"), logging=logging)


def test_other_ranks_have_no_tracker(monkeypatch):
    opened: list[object] = []
    monkeypatch.setattr(train, "tracked", lambda *rest: opened.append(rest))
    run = type("Run", (), {"world": type("World", (), {"is_main": False})()})
    train.open_metrics(run, None, None)
    assert not opened


def test_what_trackers_would_collect_on_their_own_is_off(monkeypatch, tmp_path):
    told: dict[str, dict[str, Any]] = {}

    def seen(kind: str) -> Callable[..., None]:
        return lambda *_, **more: told.update({kind: more})

    for kind in ("WandBTracker", "MLflowTracker", "TensorBoardTracker"):
        monkeypatch.setattr(tracking, kind, seen(kind))
    for name in tracking.MODULES:
        tracking._made(name, "tiny", tmp_path / "trackers")
    settings = told["WandBTracker"]["settings"]
    assert settings["console"] == "off"
    assert all(settings[f"x_disable_{what}"] for what in ("meta", "stats", "machine_info"))
    assert "argv" not in told["MLflowTracker"]["tags"]["mlflow.source.name"]
    assert told["TensorBoardTracker"]["logging_dir"] == tmp_path / "trackers"
    assert (tmp_path / "trackers").stat().st_mode & 0o777 == 0o700
