"""Processes that a launcher did not start as it should, or that never come, end in one line and soon."""

import socket
import time

import pytest

from curriculumdp import rendezvous
from curriculumdp.rendezvous import (
    PLACE,
    UNTOLD,
    WRAPPERS,
    WorldError,
    await_processes,
    launched_processes,
    require_plain_launch,
)

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}


def test_one_process_needs_no_launcher():
    for environment in ({}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "here"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        assert launched_processes(environment) == 1
    assert launched_processes(WHOLE) == 2


@pytest.mark.parametrize("stray", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_a_stray_variable_is_named_with_what_is_missing(stray):
    with pytest.raises(WorldError, match=f"has {stray}=2 but not .*MASTER_ADDR") as caught:
        launched_processes({stray: "2"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", PLACE)
def test_a_place_that_is_not_whole_is_refused(missing):
    with pytest.raises(WorldError, match=missing):
        launched_processes({name: value for name, value in WHOLE.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "2"), ("RANK", "one"), ("WORLD_SIZE", "-2"), ("MASTER_PORT", "x")]
)
def test_a_place_that_cannot_be_is_refused(name, value):
    with pytest.raises(WorldError, match=f"{name}={value}|{name}='{value}'"):
        launched_processes(WHOLE | {name: value})


@pytest.mark.parametrize("name", UNTOLD)
def test_several_tasks_that_would_each_train_alone_are_refused(name):
    with pytest.raises(WorldError, match=rf"8 processes were started \({name}\)"):
        launched_processes({name: "8"})
    assert launched_processes({name: "8"} | WHOLE) == 2


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_default_config_of_accelerates_own_kinds_is_refused(name):
    require_plain_launch({name: "false"})
    with pytest.raises(WorldError, match=f"configured for {WRAPPERS[name]}.*--config_file"):
        require_plain_launch({name: "true"})


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of one of two processes on this machine, at a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    found = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "SAY_EVERY", 0.5)
    return found


@pytest.mark.parametrize(
    ("rank", "what"), [("0", "1 of 2 processes are here"), ("1", "the main process at .* does not answer")]
)
def test_a_missing_process_is_waited_for_aloud_and_given_up_in_one_line(
    place, monkeypatch, capsys, rank, what
):
    monkeypatch.setenv("RANK", rank)
    began = time.monotonic()
    with pytest.raises(
        WorldError, match=rf"^{what}.* after 0\.03 minutes: .*compute\.join_minutes"
    ) as caught:
        await_processes(2, 0.03)
    assert 1.5 < time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    said = capsys.readouterr().err.splitlines()
    assert said
    assert all(line.startswith("waiting: ") for line in said)


def test_a_port_that_another_program_holds_is_named(place):
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(place["MASTER_PORT"])))
        other.listen()
        with pytest.raises(WorldError, match=f"cannot meet at 127.0.0.1:{place['MASTER_PORT']}"):
            await_processes(2, 0.03)
