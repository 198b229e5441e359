"""One step of each phase on made images: what it refuses, when, and that it leaves no trace."""

import importlib
import random
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curriculumdp.clipping.layer_plan import PlanError
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.curriculum import dry_step as module
from curriculumdp.curriculum import private, train
from curriculumdp.curriculum.dry_step import DryStepError, dry_step, require_memory
from curriculumdp.curriculum.state import CentralImages
from curriculumdp.curriculum.warmup import POLICY
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World, one_process
from tests.support.runs import finish, in_child, in_world, kill_at, tiny


def nothing_was_begun(run_dir: Path) -> bool:
    return (
        not (run_dir / "private" / "ledger.jsonl").exists() and not (run_dir / "private" / "secret").exists()
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("private__learning_rate", 1e39),
        ("private__learning_rate", 1e30),
        ("warmup__learning_rate", 1e30),
        ("private__sample_rate", 1e-300),
        ("central__count_weight", 1e300),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_ledger(tmp_path, key, value):
    with pytest.raises(DryStepError) as caught:
        finish(tiny(tmp_path, **{key: value}))
    assert "\n" not in str(caught.value)
    assert key.partition("__")[0] in str(caught.value)
    assert nothing_was_begun(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("private__clip_norm", 2.0**-25),
        ("private__clip_norm", 1.05e12),
        ("central__clip_norm", 1e-31),
        ("central__clip_norm", 1.05e12),
        ("compute__microbatch", 2**17),
        ("private__sigma_data", 1e-30),
        ("private__sigma_data", 1e200),
        ("private__p_mean", -1e5),
        ("private__p_std", 64.0),
        ("compute__threads", 10**6),
        ("data__name", "../up"),
        ("data__class_counts", [10**400] * 10),
        ("warmup__augment", {"operations": len(POLICY) + 1}),
        ("sampling__steps", 10**9),
        ("sampling__per_class", 10**9),
    ],
)
def test_a_range_that_a_step_or_a_certificate_has_is_the_configs_too(tmp_path, key, value):
    with pytest.raises(ConfigError, match=key.replace("__", r"\.")):
        tiny(tmp_path, **{key: value})


@pytest.mark.parametrize("value", [2.0**-24, 1e12])
@pytest.mark.parametrize("key", ["private__clip_norm", "central__clip_norm"])
def test_the_ends_of_the_clip_norms_ranges_train(tmp_path, key, value):
    assert (finish(tiny(tmp_path, **{key: value})) / "privacy.json").exists()


def test_an_engine_that_does_not_fit_is_refused_before_there_is_a_ledger(tmp_path, monkeypatch):
    def too_large(*_: object) -> None:
        raise PlanError("per-unit gradients need more: lower compute.microbatch")

    monkeypatch.setattr(private, "build_engine", too_large)
    with pytest.raises(PlanError, match=r"compute\.microbatch"):
        finish(tiny(tmp_path))
    assert nothing_was_begun(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("model__channels", (10**6,), "model.channels"),
        ("compute__microbatch", 131_071, "compute.microbatch"),
        ("private__draws", 10**9, "private.draws"),
        ("warmup__batch", 10**9, "warmup.batch"),
        ("central__queries", 10**9, "central.queries"),
        ("data__classes", 10**9, "data.classes"),
    ],
)
def test_what_no_memory_holds_is_refused_by_its_option(tmp_path, key, value, option):
    with pytest.raises(DryStepError, match=rf"^{option}: .* GiB: lower {option}$"):
        require_memory(tiny(tmp_path, **{key: value}), memory=2**29)
    require_memory(tiny(tmp_path), memory=2**29)


def test_it_leaves_no_trace(make_run, digits):
    made, state = make_run(digits, one_process())
    state.central = CentralImages(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8), torch.tensor([1, 2]))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    places = {name: tensor.data_ptr() for name, tensor in state.tensors().items()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    dry_step(made.config, one_process(), state, train.PHASE_CLASSES)
    assert [name for name, tensor in state.tensors().items() if not torch.equal(tensor, before[name])] == []
    assert {name: tensor.data_ptr() for name, tensor in state.tensors().items()} == places
    assert (state.phase, state.step) == (0, 0)
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert np.array_equal(generators[2], np.random.get_state()[1])
    assert all(parameter.grad is None for parameter in state.net.parameters())


def test_the_memory_of_the_rehearsals_is_free_again(make_run, digits):
    """Else the run would build its engine beside the rehearsal's, and could run out of memory once it was charged."""
    made, state = make_run(digits, one_process())
    alive: list[weakref.ref[Any]] = []

    def kept(maker: Any) -> Any:
        def make(run: Any) -> Any:
            phase = maker(run)
            alive.append(weakref.ref(phase))
            return phase

        return make

    engines = weakref.WeakSet[Any]()
    original = private.build_engine
    with pytest.MonkeyPatch.context() as patch:

        def build(*given: Any) -> Any:
            engine = original(*given)
            engines.add(engine)
            return engine

        patch.setattr(private, "build_engine", build)
        makers = {name: kept(maker) for name, maker in train.PHASE_CLASSES.items()}
        dry_step(made.config, one_process(), state, makers)
    assert len(alive) == 3
    assert [phase() for phase in alive] == [None] * 3
    assert not engines


def test_it_sees_no_image_and_no_secret_of_the_run(tmp_path, monkeypatch):
    """It is given neither; and nothing is charged or derived from a secret that was made for a run."""
    created: list[object] = []
    monkeypatch.setattr(RunSecret, "create", lambda: created.append(1))
    monkeypatch.setattr(Ledger, "charge", lambda *_, **__: pytest.fail("it was charged"))
    config = tiny(tmp_path)
    dry_step(config, one_process(), train.initial_state(config, torch.device("cpu")), train.PHASE_CLASSES)
    assert not created


def test_a_resumed_run_is_asked_again(tmp_path, monkeypatch):
    def killed() -> None:
        kill_at(Ledger, "charge", 4)
        finish(tiny(tmp_path))

    assert in_child(killed) < 0
    before = (tmp_path / "private" / "ledger.jsonl").read_bytes()

    def too_large(*_: object) -> None:
        raise PlanError("per-unit gradients need more: lower compute.microbatch")

    monkeypatch.setattr(private, "build_engine", too_large)
    with pytest.raises(PlanError):
        finish(tiny(tmp_path))
    assert (tmp_path / "private" / "ledger.jsonl").read_bytes() == before


def test_if_one_process_cannot_do_a_step_none_begins(tmp_path):
    def work(world: World) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if world.rank == 1:
                patch.setattr(module, "machine_memory", lambda: 2**10)
                patch.setattr(train, "require_memory", lambda _: None)
            with pytest.raises(DryStepError, match=r"another process" if world.is_main else "microbatch"):
                train.run_curriculum(tiny(tmp_path, compute__processes=2), world)

    assert in_world(2, work) == [0, 0]
    assert nothing_was_begun(tmp_path)


@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_an_optional_package_that_cannot_be_imported_is_refused_before_anything_is_charged(
    tmp_path, monkeypatch, fault
):
    if fault == "missing":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        original = importlib.import_module

        def broken(name: str, *rest: object) -> object:
            if name == "torch.utils.tensorboard":
                raise AttributeError("module 'distutils' has no attribute 'version'")
            return original(name, *rest)

        monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(DryStepError, match=r"logging\.tensorboard is true.*set logging\.tensorboard=false"):
        finish(tiny(tmp_path, logging={"tensorboard": True}))
    assert not (tmp_path / "private" / "ledger.jsonl").exists()
