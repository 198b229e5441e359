"""The doctor: each check made to fail, what it says then, what goes on, and that nothing is left or given away."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curriculumdp.clipping.dense_store import DenseStore
from curriculumdp.config.config import Config
from curriculumdp.curriculum import dataset, doctor, engine_check, surroundings
from curriculumdp.curriculum.doctor import examine
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.surroundings import Case
from curriculumdp.privacy.event import AccountingError
from curriculumdp.world import one_process
from tests.support.refused import files_of
from tests.support.runs import finish, in_world, plan_of, tiny

CHECK = {name: check for name, check, _ in doctor.CHECKS}


@contextmanager
def alone(*_: object) -> Iterator[object]:
    yield one_process()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's state is one for the process, and would outlive the test."""
    monkeypatch.setattr(surroundings, "open_world", alone)
    monkeypatch.setattr(surroundings, "plan_curriculum", plan_of)
    monkeypatch.setattr(doctor, "TIMED_SECONDS", 0.0)


def said(name: str, config: Config, **known: object) -> list[tuple[str, str]]:
    """The verdicts of one check."""
    return list(doctor._tried(CHECK[name], Case(config, **known)))


def only(name: str, config: Config, **known: object) -> tuple[str, str]:
    (verdict,) = said(name, config, **known)
    return verdict


def table(place: Path, labels: np.ndarray | None = None) -> dict[str, object]:
    """A data section on 30 images of its own, the first two of which are the same picture."""
    labels = np.arange(30) % 3 if labels is None else labels
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    images[1] = images[0]
    np.savez(place / "it.npz", images=images, labels=labels)
    path = str(place / "it.npz")
    return {"source": "npz", "path": path, "units": 30, "classes": 3, "channels": 1, "size": 8}


def test_a_sound_config_passes_every_check_and_leaves_no_trace(tmp_path):
    found = list(examine(tiny(tmp_path / "run")))
    assert [finding.check for finding in found if finding.status == "ok"] == [*CHECK]
    assert {finding.status for finding in found} <= {"ok", "warning"}  # the noise of a tiny run
    assert not list(tmp_path.iterdir())
    assert not any("\n" in finding.text for finding in found)


def test_a_failing_check_stops_only_what_needs_it(tmp_path, monkeypatch):
    def no_plan(_: Config) -> None:
        raise AccountingError("privacy.epsilon: no noise is enough")

    monkeypatch.setattr(surroundings, "plan_curriculum", no_plan)
    found = {finding.check: finding for finding in examine(tiny(tmp_path / "run"))}
    status = {name: finding.status for name, finding in found.items()}
    assert status["plan"] == "FAILED"
    assert [name for name in status if status[name] == "skipped"] == ["budget", "speed", "memory"]
    assert {status[name] for name in ("data", "phases", "gradients", "repeats", "disk")} == {"ok"}
    assert "needs plan" in found["budget"].text


@pytest.mark.parametrize(
    ("environment", "changes", "status", "words"),
    [
        ({"WORLD_SIZE": "2"}, {}, "FAILED", "but not RANK"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FAILED", "FSDP"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}, "FAILED", "each would train alone"),
        ({}, {"compute__threads": 1024}, "warning", "lower compute.threads"),
        ({}, {"compute__processes": 2}, "warning", "whether they meet was not tried"),
    ],
)
def test_a_launch_that_cannot_train_is_named(monkeypatch, environment, changes, status, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = said("launch", tiny(Path("nowhere"), **changes))
    assert status in dict(found)
    assert any(words in text for _, text in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_stops_what_runs_on_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(surroundings, "plan_curriculum", plan_of)
    found = {f.check: f for f in examine(tiny(tmp_path / "run", compute__device="cuda"))}
    assert "set compute.device=auto" in found["launch"].text
    assert [name for name in found if found[name].status == "FAILED"] == ["launch"]
    assert found["gradients"].status == found["memory"].status == "skipped"
    assert found["data"].status == "ok"


def test_processes_that_were_launched_must_be_those_of_the_config_and_come_together(tmp_path, monkeypatch):
    monkeypatch.undo()
    config = tiny(tmp_path, compute__processes=2)

    def check(config: Config, expected: str | None) -> None:
        # In a world that the launcher opened, the doctor opens its own.
        found = dict(said("launch", config))
        assert expected in found if expected else not found

    def joined(world: object) -> None:
        monkeypatch.setattr(surroundings, "open_world", lambda *_: _same(world))
        check(config, None if world.rank else "ok")

    assert in_world(2, joined) == [0, 0]


@contextmanager
def _same(world: object) -> Iterator[object]:
    yield world


def test_other_ranks_leave_after_the_launch(tmp_path, monkeypatch):
    @contextmanager
    def second(*_: object) -> Iterator[object]:
        yield SimpleNamespace(rank=1, device=torch.device("cpu"), any=bool)

    monkeypatch.setattr(surroundings, "open_world", second)
    assert list(examine(tiny(tmp_path))) == []


def test_a_missing_package_is_named_with_its_option(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    status, text = only("packages", tiny(Path("nowhere"), logging={"tensorboard": True}))
    assert status == "FAILED"
    assert "logging.tensorboard" in text


def test_noise_that_drowns_the_images_is_a_warning():
    verdicts = said("plan", tiny(Path("nowhere")))
    assert [status for status, _ in verdicts] == ["ok", "warning", "warning"]
    assert "noise multipliers: central 6, private " in verdicts[0][1]
    assert "expect noisy central images" in verdicts[1][1]


def named(place: Path, budget: float) -> Config:
    digits = {"source": "digits", "units": 1437, "classes": 10, "channels": 1, "size": 8}
    return tiny(
        place / "run", data=digits | {"name": "wards", "ledger": str(place / "state"), "budget": budget}
    )


def test_a_budget_fails_without_a_ledger_and_without_room(tmp_path):
    for budget, words in ((8.0, "fits"), (6.0, "data.budget")):
        config = named(tmp_path / str(budget), budget)
        status, text = only("budget", config, plan=plan_of(config))
        assert status == "FAILED"
        assert "--create" in text
        dataset.create(config)
        before = files_of(tmp_path)
        status, text = only("budget", config, plan=plan_of(config))
        assert status == ("ok" if budget == 8 else "FAILED")
        assert words in text
        assert files_of(tmp_path) == before


def test_a_run_that_has_begun_has_its_room(tmp_path):
    config = named(tmp_path, 8.0)
    dataset.create(config)
    finish(config)
    status, text = only("budget", config, plan=plan_of(config))
    assert status == "ok"
    assert "has begun" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"units": 31}, "data.units"),
        ({"classes": 2}, "classes"),
        ({"path": "/nowhere/it.npz"}, "/nowhere/it.npz"),
    ],
)
def test_data_that_are_not_as_declared_fail_in_the_readers_words(tmp_path, change, words):
    status, text = only("data", tiny(tmp_path / "run", data=table(tmp_path) | change))
    assert status == "FAILED"
    assert words in text


def test_counts_of_the_data_are_said_only_where_they_are_asked_for(tmp_path):
    config = tiny(tmp_path / "run", data=table(tmp_path, np.repeat([0, 1], [23, 7])))
    public = said("data", config)
    assert public[0] == ("ok", "as declared: 30 units (one image), 1×8×8, 3 classes: numbers without names")
    assert not re.search(r"\b(23|7|2)\b", " ".join(text for _, text in public))
    assert "some images are the same picture" in public[1][1]
    shown = said("data", config, show_private=True)
    assert "by class: 23, 7, 0" in shown[1][1]
    assert "PRIVATE: 2 images" in shown[2][1]


def test_names_of_classes_are_those_that_training_would_publish(tmp_path):
    data = table(tmp_path) | {"class_names": ["cyst", "none", "tumour"]}
    assert "3 classes: cyst, none, tumour" in said("data", tiny(tmp_path / "run", data=data))[0][1]


def test_what_no_machine_holds_is_refused_before_it_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("curriculumdp.curriculum.dry_step.machine_memory", lambda: 2**16)
    found = {f.check: f.status for f in examine(tiny(tmp_path / "run"))}
    assert found["sizes"] == "FAILED"
    assert found["data"] == found["phases"] == found["speed"] == "skipped"
    assert found["plan"] in ("ok", "warning")


def test_a_phase_that_cannot_take_a_step_is_named():
    status, text = only("phases", tiny(Path("nowhere"), warmup__learning_rate=1e30))
    assert status == "FAILED"
    assert text.startswith("warmup: ")


def test_a_layer_with_a_wrong_gradient_is_found(monkeypatch):
    """Of each kind of layer, off by a per cent in the store, or of the neighbour's unit."""
    config, right = tiny(Path("nowhere")), DenseStore.add_clipped
    for spoil in (
        lambda grads: grads[:, :40].mul_(1.01),
        lambda grads: grads[:, -100:].mul_(0),
        lambda grads: grads[:, : grads.shape[1] // 2].copy_(
            grads[:, : grads.shape[1] // 2].roll(1, 0).clone()
        ),
    ):
        with monkeypatch.context() as patch:

            def wrong(self: DenseStore, *rest: object, spoil: object = spoil) -> object:
                spoil(self.grads)
                return right(self, *rest)

            patch.setattr(DenseStore, "add_clipped", wrong)
            status, text = only("gradients", config)
        assert status == "FAILED", text
        assert "compute.device=cpu" in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"private__draws": 1, "compute__microbatch": 1},
        {"compute__microbatch": 32, "data__flip": True, "data__shift": 1, "private__noise_levels": "spread"},
        {"private__label_dropout": 0.3, "model": {"channels": [8, 16], "blocks": 1, "attention": [4]}},
        {"compute__memory_format": "channels_last"},
        {"private__clip_norm": 1e-6},
    ],
)
def test_the_real_engine_agrees_with_autograd_whatever_the_config(changes):
    found = engine_check.check_engine(tiny(Path("nowhere"), **changes), torch.device("cpu"))
    assert found.error < 1e-5
    assert found.allowed < 2e-3
    assert found.repeats


def test_the_grids_rounding_under_a_far_too_large_clip_norm_is_not_the_engines_error():
    found = engine_check.check_engine(tiny(Path("nowhere"), private__clip_norm=1e6), torch.device("cpu"))
    assert 1e-4 < found.error < found.allowed


def test_a_gradient_that_is_not_a_number_is_an_error_and_no_agreement():
    bad = torch.full((2,), torch.nan)
    assert engine_check._error((bad, bad), (bad, bad)) > 1e300


def test_a_step_that_does_not_repeat_fails(monkeypatch):
    right, calls = PrivatePhase.clipped_sum, iter(range(10))

    def differs(self: PrivatePhase, *rest: object) -> object:
        total, seen = right(self, *rest)
        total[0] += next(calls)
        return total, seen

    monkeypatch.setattr(PrivatePhase, "clipped_sum", differs)
    config = tiny(Path("nowhere"))
    case = Case(config)
    assert [status for status, _ in doctor._tried(doctor.check_gradients, case)] == ["ok"]
    ((status, text),) = doctor._tried(doctor.check_repeats, case)
    assert status == "FAILED"
    assert "charge steps again" in text


@pytest.mark.parametrize(("there", "status"), [(90, "FAILED"), (105, "warning"), (200, "ok")])
@pytest.mark.parametrize("processes", [None, 3])
def test_a_peak_is_held_against_the_memory_that_is_there(monkeypatch, there, status, processes):
    monkeypatch.setattr(doctor, "machine_memory", lambda: there * (processes or 1))
    config = tiny(Path("nowhere"), compute__processes=processes)
    found, text = only("memory", config, peak=SimpleNamespace(memory=100))
    assert found == status
    assert ("compute.microbatch" in text) == (status != "ok")


def test_a_curriculum_without_dp_sgd_has_nothing_to_time(tmp_path):
    config = tiny(tmp_path / "run", curriculum=("central", "warmup"))
    found = {f.check: f for f in examine(config)}
    assert {found[name].status for name in ("gradients", "repeats", "speed", "memory")} == {"ok"}
    assert "no DP-SGD" in found["speed"].text


def test_a_disk_without_room_or_that_cannot_be_written_fails(tmp_path, monkeypatch):
    config = tiny(tmp_path / "run")
    need = surroundings.disk_needed(config, 1000)
    for free, status in ((need, "ok"), (need - 1, "FAILED")):
        monkeypatch.setattr(
            surroundings.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free)
        )
        assert only("disk", config, parameters=1000)[0] == status
    assert only("disk", config, parameters=1000, decoded=10**15)[0] == "FAILED"
    assert only("disk", config)[0] == "warning"
    (tmp_path / "file").touch()
    status, text = only("disk", tiny(tmp_path / "file" / "run"), parameters=1000)
    assert status == "FAILED"
    assert "file is not a folder" in text


def test_the_room_for_checkpoints_is_at_least_what_a_run_takes(tmp_path):
    config = tiny(tmp_path / "run")
    finish(config)
    files = (tmp_path / "run").rglob("*.safetensors")
    kept = sum(file.stat().st_size for file in files if "release" not in str(file))
    parameters = engine_check.initial_state(config, torch.device("cpu")).weights.numel()
    assert kept < surroundings.disk_needed(config, parameters) < 3 * kept
