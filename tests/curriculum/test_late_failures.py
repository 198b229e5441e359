"""What a config can get wrong is refused before the first charge, whichever option it is and however odd its value."""

import json
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from curriculumdp.config.config import Config, config_from
from curriculumdp.config.yaml_file import ConfigError, options_of
from curriculumdp.curriculum import dry_step
from tests.support.runs import finish, in_child, tiny

# Of every kind what a person could type, and then some; a config refuses most of them at once.
NUMBERS: tuple[Any, ...] = (
    *(
        0,
        1,
        2,
        3,
        5,
        7,
        8,
        13,
        64,
        255,
        1000,
        65_537,
        131_071,
        131_072,
        10**6,
        2**31,
        2**63 - 1,
        10**18,
        10**40,
    ),
    *(
        5e-324,
        1e-300,
        1e-40,
        1e-30,
        2e-24,
        1e-12,
        1e-6,
        1e-3,
        0.3,
        0.999,
        1.5,
        37.5,
        1e4,
        1e6,
        1e10,
        9e11,
        1.05e12,
    ),
    *(1e20, 1e25, 1e30, 3e38, 1e39, 1e60, 1e160, 1e300, 1.7e308, -1, -1e-3, -80.0, -1e30, -1e300),
)
OTHERS: tuple[Any, ...] = (
    *(
        "",
        "a",
        "..",
        "a/b",
        "/dev/null/a",
        "a\0b",
        "~nobody-is-called-so/a",
        "é" * 120,
        "a" * 5000,
        "ab\ud800",
    ),
    *(
        True,
        False,
        None,
        (),
        [0],
        [8],
        [8, 8],
        [4, 2],
        [1],
        [10**18],
        [16, 32, 64],
        [10**6] * 10,
        [144] * 9 + [141],
    ),
    *(
        [10**400] * 10,
        [0] * 9 + [1],
        {},
        "cpu",
        "cuda",
        "bf16",
        "channels_last",
        "mode",
        "euler",
        "heun",
        "churn",
    ),
)
# These take as long as they say: a run that is under way after so many seconds of computing counts as one that trains.
PATIENCE = 8
MEMORY = 4 * 2**30
# The accountants' seconds: their own tests have these.
ACCOUNTED = {"privacy", "private.steps", "private.sample_rate", "central.queries", "central.sample_rate"}
ACCOUNTED |= {"central.noise_multiplier", "curriculum"}


def legal_changes(rng: random.Random, rounds: int) -> Iterator[tuple[str, Any]]:
    """(key, value) of changes of one option that a config takes: each option in turn, `rounds` times."""
    keys = [key for key, _ in options_of(Config) if key != "run_dir" and not is_accounted(key)]
    for _ in range(rounds):
        rng.shuffle(keys)
        for key in keys:
            values = rng.sample((*NUMBERS, *OTHERS), len(NUMBERS) + len(OTHERS))
            legal = (value for value in values if changed(Path("run"), key, value) is not None)
            if (value := next(legal, None)) is not None:
                yield key, value


def changed(run_dir: Path, key: str, value: Any) -> Config | None:
    """The tiny run with one option changed; None if the config refuses it, in one line."""
    values: dict[str, Any] = deepcopy(base()) | {"run_dir": str(run_dir)}
    section, _, last = key.rpartition(".")
    if section and not isinstance(place_of(values, section), dict):
        return None
    (place_of(values, section) if section else values)[last] = value
    try:
        return config_from(values, "tiny")
    except ConfigError:
        return None


@lru_cache
def base() -> dict[str, Any]:
    """A run as short as can be, so that one that fails at its end is seen to."""
    short = {"warmup__steps": 4, "private__draws": 1}  # what costs is as in all tiny runs, and hence solved
    return tiny(Path("run"), **short, model={"channels": [8], "blocks": 1}).resolved()


def place_of(values: dict[str, Any], section: str) -> Any:
    for part in section.split("."):
        values = values[part]
    return values


def ends(place: Path, config: Config) -> tuple[str, str]:
    """How a run ends, in a process of its own: ("trains" or "refused" or "fails", what it said)."""
    said = place / "said"

    def work() -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)  # of the processor: a busy machine changes nothing
        resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))
        os.environ["XDG_STATE_HOME"] = str(place / "state")
        dry_step.machine_memory = lambda: MEMORY
        try:
            finish(config)
        except ValueError as error:
            of_package = type(error).__module__.startswith("curriculumdp") and "\n" not in str(error)
            said.write_text(json.dumps(["refused" if of_package else "fails", repr(error)[:600]]))
        except BaseException as error:
            said.write_text(json.dumps(["fails", repr(error)[:600]]))

    status = in_child(work)
    if said.exists():
        kind, text = json.loads(said.read_text())
        return kind, text
    return ("trains", "") if status in (0, -signal.SIGVTALRM) else ("fails", f"exit status {status}")


def charges(config: Config) -> int:
    """How many events the run's ledger holds."""
    ledger = Path(config.run_dir) / "private" / "ledger.jsonl"
    if not ledger.exists():
        return 0
    return sum(json.loads(line)["body"]["kind"] == "charge" for line in ledger.read_text().splitlines())


def require_early(place: Path, key: str, value: Any) -> str:
    """ "trains", or "refused" in one line with nothing charged; AssertionError for anything else."""
    config = changed(place / "run", key, value)
    assert config is not None
    kind, text = ends(place, config)
    assert kind != "fails", f"{key} = {str(value)[:60]}: {text}"
    blown_up = "TrainingError" in text and key.endswith(
        "learning_rate"
    )  # which only training itself can tell
    late = kind == "refused" and charges(config) and not blown_up
    assert not late, f"{key} = {str(value)[:60]} is refused late: {text}"
    return kind


def is_accounted(key: str) -> bool:
    return key in ACCOUNTED or key.partition(".")[0] in ACCOUNTED


@pytest.fixture(scope="module")
def accounted(solve_once: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What accountants say of the run, asked once, so that every process has it."""
    config = changed(tmp_path_factory.mktemp("first") / "run", "name", "first")
    assert config is not None
    finish(config)


@pytest.mark.parametrize("share", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_whatever_one_option_is_a_run_trains_or_is_refused_before_it_is_charged(tmp_path, accounted, share):
    found = Counter()
    for number, (key, value) in enumerate(islice(legal_changes(random.Random(5), 5), share)):
        (tmp_path / str(number)).mkdir()
        found[require_early(tmp_path / str(number), key, value)] += 1
    assert found["trains"], "the test has no power: every run was refused"
