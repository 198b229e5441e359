"""What `pip install` gives: console commands that are those of launch/, and extras that are named when missing."""

import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from curriculumdp import command
from curriculumdp.command import EXTRAS, as_typed_here
from tests.support.tiny_release import write_keys, write_release

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = sorted(file.stem for file in (ROOT / "launch").glob("*.py"))
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
# Runs a module's main where the modules named first are not installed.
WITHOUT = """
import importlib, importlib.abc, sys
absent = set(sys.argv[1].split(","))
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[2:]
sys.exit(importlib.import_module(f"curriculumdp.commands.{sys.argv[0]}").main())
"""


def without(absent: str, *words: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, absent, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_each_command_of_launch_is_a_console_command_and_the_same_function() -> None:
    assert PROJECT["scripts"] == {
        f"curriculumdp-{name}": f"curriculumdp.commands.{name}:main" for name in COMMANDS
    }
    for name in COMMANDS:
        main = importlib.import_module(f"curriculumdp.commands.{name}").main
        assert runpy.run_path(str(ROOT / "launch" / f"{name}.py"))["main"] is main


def test_an_extra_named_for_a_module_brings_it_and_the_base_does_not() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[>=<\[]", line)[0].lower() for line in requirements}

    for module, extra in EXTRAS.items():
        wanted = DISTRIBUTIONS.get(module, module)
        assert wanted in names(PROJECT["optional-dependencies"][extra])
        assert wanted not in names(PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (("report", "RUN"), "matplotlib", "report"),
        (("audit", ROOT / "configs/digits.yaml"), "matplotlib", "report"),
        (("evaluate", "RELEASE", "--real", "digits"), "matplotlib", "report"),
        (("sample", "RELEASE", "--num", 1, "--out", "there"), "torch", "train"),
        (("train", ROOT / "configs/digits.yaml"), "accelerate", "train"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(
    words: tuple[object, ...], module: str, extra: str
) -> None:
    done = without(module, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {module} is not installed")
    assert f"-m pip install -e '.[{extra}]'" in done.stderr


def test_a_module_that_no_extra_brings_is_a_bug_and_keeps_its_traceback() -> None:
    done = without("yaml", "plan", ROOT / "configs/digits.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_receiver_verifies_and_plans_with_neither_torch_nor_opacus(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ours")
    release = write_release(tmp_path / "release", signing_key=private)
    absent = ",".join(set(EXTRAS))
    done = without(absent, "verify", release, "--signer", public)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"verified: {release}\n")
    assert "not checked: the certificate's figures by Opacus" in done.stdout
    assert "Opacus RDP:" not in done.stdout
    (release / "samples.png").write_bytes(b"another picture")
    assert without(absent, "verify", release).returncode == 1
    assert without(absent, "plan", ROOT / "configs/digits.yaml", "--json").returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_packages_the_commands_and_few_base_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        facts = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(facts).decode()
        entries = archive.read(facts.replace("METADATA", "entry_points.txt")).decode()
    assert {"curriculumdp/commands/verify.py", "dpkernels/__init__.py", "curriculumdp/report/report.css"} <= {
        *names
    }
    assert {name.split("/")[0] for name in names} == {"curriculumdp", "dpkernels", facts.split("/")[0]}
    assert all(f"curriculumdp-{name} = curriculumdp.commands.{name}:main" in entries for name in COMMANDS)
    base = {
        re.split(r"[>=<; ]", line.removeprefix("Requires-Dist: "))[0].lower()
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert base == {"numpy", "scipy", "dp-accounting", "cryptography", "pydantic", "pyyaml", "safetensors"}
    assert "Provides-Extra: report" in metadata


def in_an_environment(monkeypatch: pytest.MonkeyPatch, python: Path, package: Path) -> None:
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(command, "__file__", str(package / "command.py"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str]:
    monkeypatch.chdir(tmp_path)
    return lambda: as_typed_here("do: launch/verify.py runs/a/release")


def test_a_printed_command_works_from_a_checkout(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_an_environment(monkeypatch, tmp_path / ".venv/bin/python", tmp_path / "curriculumdp")
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/verify.py").touch()
    assert said() == "do: .venv/bin/python launch/verify.py runs/a/release"
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert said() == f"do: {tmp_path}/.venv/bin/python {tmp_path}/launch/verify.py runs/a/release"


def test_a_printed_command_works_where_the_package_is_installed(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bin_ = tmp_path / "some where/bin"
    in_an_environment(monkeypatch, bin_ / "python", tmp_path / "site-packages/curriculumdp")
    assert said() == "do: 'some where/bin/python' -m curriculumdp.commands.verify runs/a/release"
    (bin_ / "curriculumdp-verify").touch(mode=0o755)
    assert said() == "do: 'some where/bin/curriculumdp-verify' runs/a/release"
    monkeypatch.setenv("PATH", str(bin_), prepend=os.pathsep)
    assert said() == "do: curriculumdp-verify runs/a/release"


def test_an_extra_is_installed_into_the_environment_that_lacks_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bare pip may be another environment's, and outside of a checkout there is no `.` to install."""
    text = "run pip install 'curriculumdp[dicom]'"
    monkeypatch.chdir(tmp_path)
    in_an_environment(monkeypatch, tmp_path / ".venv/bin/python", tmp_path / "curriculumdp")
    assert as_typed_here(text) == "run .venv/bin/python -m pip install 'curriculumdp[dicom]'"
    (tmp_path / "pyproject.toml").touch()
    assert as_typed_here(text) == "run .venv/bin/python -m pip install -e '.[dicom]'"
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert as_typed_here(text) == f"run {tmp_path}/.venv/bin/python -m pip install -e '{tmp_path}[dicom]'"


def test_only_commands_are_replaced() -> None:
    for text in ("my/launch/verify.py", "xlaunch/verify.py", "launch/verify.pyc"):
        assert as_typed_here(text) == text


def test_a_printed_command_is_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell reads it, from a folder that is not the checkout."""
    monkeypatch.chdir(tmp_path)
    words = as_typed_here("launch/plan.py --help")
    done = subprocess.run(words, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
