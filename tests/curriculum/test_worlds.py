"""Processes that are not the world asked for, or do not agree, stop before anything is charged."""

import os
from contextlib import suppress

import pytest
import torch

from curriculumdp.curriculum import declared
from curriculumdp.world import open_world
from tests.support.refused import refusal
from tests.support.runs import finish, in_child, in_world, tiny


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
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert in_child(lambda: _require("Accelerate sees 1" in refusal(open_world_without_group))) == 0


def _require(holds: bool) -> None:
    """An assertion for use in a child."""
    assert holds


def open_world_without_group() -> None:
    """What `accelerate` does in a process that does not know that it is on the CPU: rank 0 of 1."""
    from curriculumdp import world

    class Alone:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

        def __init__(self, **_: object) -> None: ...

    originals = world.Accelerator, world.await_processes
    world.Accelerator, world.await_processes = Alone, lambda *_: None
    try:
        open_world("cpu", None).__enter__()
    finally:
        world.Accelerator, world.await_processes = originals


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


def test_a_peer_that_is_gone_is_one_line_and_no_traceback():
    def work(world) -> None:
        if world.rank == 1:
            os._exit(7)
        said = refusal(lambda: world.any(False))
        assert "another process of this run is gone" in said
        assert "\n" not in said

    assert in_world(2, work) == [0, 7]
