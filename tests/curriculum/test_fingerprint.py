"""What is known to change a step's bits is in the fingerprint, and what is not is left out of it."""

from pathlib import Path

import pytest
import torch

from curriculumdp.curriculum import fingerprint as module
from curriculumdp.curriculum.fingerprint import ENVIRONMENT, GPU_ENVIRONMENT, fingerprint
from curriculumdp.world import World, one_process
from tests.support.runs import in_world, tiny


def of(**changes: object) -> dict:
    return fingerprint(tiny(Path("unused"), **changes), one_process())


@pytest.fixture(autouse=True)
def no_such_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENVIRONMENT, *GPU_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("compute__threads", 3),
        ("compute__microbatch", 16),
        ("compute__precision", "bf16"),
        ("compute__memory_format", "channels_last"),
        ("compute__capture", False),
    ],
)
def test_every_option_that_is_marked_fresh_changes_it(key, value):
    base = {"microbatch": 8, "threads": 1, "device": "cuda"}
    section, _, name = key.rpartition("__")
    assert of(**{section: base}) != of(**{section: base | {name: value}})


def test_where_it_runs_counts_and_not_how_that_was_asked_for():
    compute = {"microbatch": 8, "threads": 1}
    assert of(compute=compute | {"device": "auto"}) == of(compute=compute | {"device": "cpu"})


def test_options_that_change_no_bit_leave_it_alone():
    assert of() == of(checkpoint__every=5, sampling__steps=7, logging={"show_private_metrics": True})


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_variables_that_choose_instructions_or_precision_change_it(monkeypatch, name):
    before = of()
    monkeypatch.setenv(name, "AVX2")
    assert of() != before


@pytest.mark.parametrize("name", GPU_ENVIRONMENT)
def test_variables_of_a_gpus_libraries_change_it_on_a_gpu_alone(monkeypatch, name):
    monkeypatch.setattr(module, "_gpu", lambda _: {})
    cpu, gpu = (module._machine(torch.device(kind)) for kind in ("cpu", "cuda"))
    monkeypatch.setenv(name, "1")
    assert module._machine(torch.device("cpu")) == cpu
    assert module._machine(torch.device("cuda")) != gpu


@pytest.mark.parametrize("fact", ["build", "version", "numpy", "processor", "precision"])
def test_libraries_and_processor_change_it(monkeypatch, fact):
    before = of()
    if fact == "build":
        monkeypatch.setattr(torch.__config__, "show", lambda: "another MKL")
    elif fact == "version":
        monkeypatch.setattr(torch, "__version__", "2.99")
    elif fact == "numpy":
        monkeypatch.setattr(module.np, "__version__", "9.9")
    elif fact == "precision":
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    else:
        monkeypatch.setattr(module, "_processor", lambda: "another processor")
    assert of() != before


def test_equal_ranks_have_the_fingerprint_of_one_process(tmp_path):
    alone = of()

    def work(world: World) -> None:
        assert fingerprint(tiny(tmp_path), world) == alone

    assert in_world(2, work) == [0, 0]


def test_a_rank_on_another_machine_shows(tmp_path):
    alone = of()

    def work(world: World) -> None:
        if world.rank == 1:
            module._processor = lambda: "another processor"
        found = fingerprint(tiny(tmp_path), world)
        assert len(found["unequal ranks"]) == 1
        if world.is_main:
            assert {key: value for key, value in found.items() if key != "unequal ranks"} == alone

    assert in_world(2, work) == [0, 0]
