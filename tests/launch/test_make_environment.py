"""`make` sets up an environment with torch's CPU build where it can be had, and without it where it cannot."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Stands for `python3 -m venv .venv`: makes a pip that notes what it is asked, and cannot reach torch's index.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin
cat > .venv/bin/pip <<'PIP'
#!/bin/sh
echo "$*" >> asked
case "$*" in *--index-url*) exit {status};; esac
PIP
chmod +x .venv/bin/pip
"""


def asked_of_pip(folder: Path, *variables: str, status: int = 0, driver: bool = False) -> list[str]:
    """What `make` asks pip for, line by line, where torch's index answers with `status`."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name in ("sh", "mkdir", "cat", "chmod", "touch", "sed", "make", "echo"):
        bin_.joinpath(name).symlink_to(shutil.which(name) or f"no {name}")
    python = bin_ / "python3"
    python.write_text(PYTHON.format(status=status))
    python.chmod(0o755)
    if driver:
        bin_.joinpath("nvidia-smi").symlink_to(bin_ / "echo")
    for name in ("Makefile", "pyproject.toml", "constraints"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "TORCH_INDEX")}
    subprocess.run(
        ["make", ".venv/.ready", *variables],
        cwd=folder,
        env=environment | {"PATH": str(bin_)},
        check=True,
        capture_output=True,
    )
    return (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize("status", [0, 1])
def test_torch_comes_from_its_cpu_index_first_and_a_failing_index_breaks_nothing(
    tmp_path: Path, status: int
) -> None:
    first, second = asked_of_pip(tmp_path, status=status)
    assert f"--index-url {CPU_INDEX}" in first
    assert first.endswith("-r constraints/cpu.txt")
    assert second == "install --quiet -c constraints/cpu.txt -e .[train,report,dev]"


def test_no_other_index_is_asked_where_none_is_wanted(tmp_path: Path) -> None:
    assert asked_of_pip(tmp_path, "TORCH_INDEX=") == [
        "install --quiet -c constraints/cpu.txt -e .[train,report,dev]"
    ]


def test_a_machine_with_a_driver_gets_the_default_build(tmp_path: Path) -> None:
    assert asked_of_pip(tmp_path, driver=True) == ["install --quiet -e .[train,report,dev]"]
