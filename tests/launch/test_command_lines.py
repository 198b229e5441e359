"""A bad command line ends in one line and exit status 2, in every command, before any library is loaded."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from curriculumdp.command import Parser

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
COMMANDS = sorted(file.name for file in LAUNCH.glob("*.py"))
# What each needs at least, and, where it takes a number, an option that is none.
NEEDED = {
    "audit.py": ["config"],
    "budget.py": ["config"],
    "compare.py": ["runs"],
    "doctor.py": ["config"],
    "evaluate.py": ["release", "--real", "digits"],
    "export.py": ["run", "--out", "there"],
    "new.py": [
        *("--units", "9", "--classes", "1", "--size", "8", "--channels", "1", "--epsilon", "1"),
    ],
    "plan.py": ["config"],
    "prepare.py": ["celeba", "folder", "--out", "there"],
    "report.py": ["run"],
    "sample.py": ["release", "--num", "3", "--out", "there"],
    "train.py": ["config"],
    "verify.py": ["release"],
}
NUMBERS = {"audit.py": "--runs", "evaluate.py": "--num", "prepare.py": "--size", "sample.py": "--steps"}


def refusal(name: str, *arguments: str) -> str:
    """The one line by which a command refuses its arguments, without any package at hand."""
    done = subprocess.run(
        [sys.executable, "-S", str(LAUNCH / name), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()
    assert f"see {name} --help" in done.stderr
    return done.stderr


def test_all_commands_are_here() -> None:
    assert sorted(NEEDED) == COMMANDS
    for name in COMMANDS:
        assert len((LAUNCH / name).read_text().splitlines()) < 60, name


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_named(name: str) -> None:
    assert "--flag" in refusal(name, *NEEDED[name], "--flag")
    assert "--flag" in refusal(name, *NEEDED[name], "--flag\n\x1b[31m")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_argument_is_named(name: str) -> None:
    assert "required" in refusal(name)


@pytest.mark.parametrize(("name", "option"), NUMBERS.items())
def test_a_bad_number_is_named(name: str, option: str) -> None:
    assert "'many'" in refusal(name, *NEEDED[name], option, "many")


@pytest.mark.parametrize("name", ["audit.py", "plan.py", "train.py"])
def test_an_option_may_stand_between_overrides(name: str) -> None:
    """What is refused is the unknown option alone, not the override behind a known one."""
    known = {"audit.py": "--long", "plan.py": "--json", "train.py": "--show-private-metrics"}[name]
    said = refusal(name, "config", "privacy.epsilon=1", known, "privacy.delta=1e-5", "--flag")
    assert "privacy" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_that_a_command_takes_may_begin_with_a_tilde(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--out=~/it` reaches a program as it is typed; what is no Path is a config or a set, which expand their own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    source = (LAUNCH.parent / "curriculumdp" / "commands" / name).read_text()
    paths = re.findall(r'add_argument\(\s*"(-*[\w-]+)"[^)]*?type=Path', source)
    seen: list[dict[str, object]] = []
    original = Parser.parse_intermixed_args

    def watched(self: Parser, *given: object) -> object:
        asked = original(self, *given)
        seen.append(vars(asked))
        raise SystemExit

    monkeypatch.setattr(Parser, "parse_intermixed_args", watched)
    names = [path for path in paths if not path.startswith("--")]
    words = [
        f"~/in/{word}" if word in names else word for word in NEEDED[name] if word not in ("there", "--out")
    ]
    options = [f"{path}=~/in/{path.strip('-')}" for path in paths if path.startswith("--")]
    monkeypatch.setattr(sys, "argv", [name, *words, *options])
    with pytest.raises(SystemExit):
        runpy.run_path(str(LAUNCH / name))["main"]()
    values = [value for one in seen[0].values() for value in (one if isinstance(one, list) else [one])]
    found = [value for value in values if isinstance(value, Path)]
    assert len(found) == len(paths)
    assert all(path.is_relative_to(tmp_path / "in") for path in found)


def test_a_home_of_nobody_is_refused() -> None:
    assert "no such user" in refusal("report.py", "~nobody-of-that-name/run")
