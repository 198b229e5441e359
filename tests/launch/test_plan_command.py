"""`launch/plan.py` answers without data, without torch, from a bare checkout, and errs in one line."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "launch" / "plan.py"
FASHION = ROOT / "configs" / "fashion_mnist_eps10.yaml"
SMALL = [
    ROOT / "configs" / "digits.yaml",
    "data.source=npz",
    "data.path=/nowhere/at/all.npz",
    "privacy.epsilon=1",
    "central.queries=1",
    "central.noise_multiplier=6",
]
# Runs a script as the command line would, where the modules named first cannot be imported.
BLOCKED = """
import importlib.abc, runpy, sys
blocked = set(sys.argv[1].split(","))
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in blocked:
            raise AssertionError(f"imports {name}")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )


def test_json_has_exactly_the_documented_keys_and_needs_neither_data_nor_torch() -> None:
    heavy = "torch,triton,diffusers,accelerate,opacus,sklearn,kornia,PIL,cryptography"
    done = run("-c", BLOCKED, heavy, LAUNCHER, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan) == {"epsilon", "delta", "accountant", "phases"}
    keys = {"name", "mechanism", "sample_rate", "noise_multiplier", "steps", "epsilon_alone"}
    assert all(set(phase) == keys for phase in plan["phases"])
    central, warmup, private = plan["phases"]
    assert (central["name"], central["steps"], central["noise_multiplier"]) == ("central", 1, 6)
    assert warmup["noise_multiplier"] is None
    assert warmup["sample_rate"] is None
    assert private["noise_multiplier"] > 1
    assert 0.999 < plan["epsilon"] <= 1
    assert plan["delta"] == 1e-4


def test_the_table_of_a_papers_run_takes_less_than_fifteen_seconds_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(LAUNCHER, FASHION)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "private" in done.stdout
    assert "total: ε = " in done.stdout
    assert re.search(r"detects it at most this often.*:\s+13\.\d% at 0\.1% false alarms; ", done.stdout)
    assert after.ru_utime - before.ru_utime < 15


def test_help_answers_before_anything_heavy_is_imported() -> None:
    done = run("-c", BLOCKED, "yaml,pydantic,numpy,scipy,dp_accounting,torch", LAUNCHER, "--help")
    assert done.returncode == 0, done.stderr
    assert "key.path=value" in done.stdout


def test_it_runs_from_a_bare_checkout_and_finds_that_checkouts_code(tmp_path: Path) -> None:
    for folder in ("launch", "curriculumdp", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    marked = tmp_path / "curriculumdp" / "config" / "yaml_file.py"
    marked.write_text(marked.read_text().replace("cannot read the config file", "bare checkout"))
    done = run(tmp_path / "launch" / "plan.py", "missing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "bare checkout" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "config"),
        (["missing.yaml"], "missing.yaml"),
        ([FASHION, "--unknown"], "--unknown"),
        ([FASHION, "privacy.epsilom=1"], "privacy.epsilon"),
        ([FASHION, "privacy.epsilon=-1"], "privacy.epsilon"),
        ([FASHION, "privacy.epsilon=0.1"], "central.queries"),
        ([FASHION, "privacy.delta=1e-11"], "privacy.delta"),
        ([FASHION, "data.units"], "data.units"),
    ],
)
def test_a_bad_input_is_one_line_and_status_2(arguments: list[object], named: str) -> None:
    done = run(LAUNCHER, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


def test_overrides_and_options_may_stand_in_any_order() -> None:
    done = run(LAUNCHER, SMALL[0], "--json", *SMALL[1:])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["phases"][0]["steps"] == 1


def test_a_reader_that_left_ends_it_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, LAUNCHER, *map(str, SMALL)], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
