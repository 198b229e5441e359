"""Every kernel and tile compiles for Hopper and Ampere, without a GPU, and keeps its values in registers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dpkernels
from dpkernels.catalog import CATALOG

PACKAGE = Path(dpkernels.__file__).parent
# Shared memory a program may take: H100, A100.
SHARED = {90: 227 * 1024, 80: 163 * 1024}


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """One entry a compiled kernel, from a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    script = Path(__file__).with_name("compile_catalog.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_of_the_package_is_compiled_for_both_architectures(
    compiled: list[dict[str, Any]],
) -> None:
    sources = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
    launched = set(re.findall(r"^\s*(_\w+_kernel)\[", sources, re.MULTILINE))
    assert launched
    for arch in (90, 80):
        assert launched == {line["kernel"] for line in compiled if line["arch"] == arch}


def test_no_main_configuration_spills(compiled: list[dict[str, Any]]) -> None:
    spilling = [line for line in compiled if line["stack"] > CATALOG[line["row"]].stack]
    assert not spilling, "\n".join(map(str, spilling))


def test_every_program_fits_in_shared_memory(compiled: list[dict[str, Any]]) -> None:
    assert all(line["shared"] <= SHARED[line["arch"]] for line in compiled)


def test_products_run_on_the_matrix_units(compiled: list[dict[str, Any]]) -> None:
    """bf16 with channels_last: Hopper's warpgroup instructions from 64 channels on, fed by 16-byte copies."""
    for line in compiled:
        conv2d = line["row"].startswith("conv2d") and "recompute" not in line["row"]
        if conv2d and line["precision"] != "fp32":
            assert line["wgmma"] if line["arch"] == 90 and line["shape"]["cout"] >= 64 else line["mma"], line
        if conv2d and line["precision"] == "bf16":
            assert line["wide_copies"], line


def test_blocks_on_rows_of_channels_read_in_runs_of_16_bytes(compiled: list[dict[str, Any]]) -> None:
    """Wherever a group has a power of two of channels; the sums over draws are small."""
    lines = [line for line in compiled if line["row"].startswith(("rows", "attention"))]
    assert lines
    for line in lines:
        shape = line["shape"]
        padded = "sources" in shape and (sum(shape["sources"]) // shape["groups"]).bit_count() != 1
        assert line["runs"] or padded or line["kernel"] == "_draws_kernel", line


def test_no_kernel_uses_atomics(compiled: list[dict[str, Any]]) -> None:
    assert not [line for line in compiled if line["atomics"]]


def test_what_is_recomputed_for_the_sum_is_multiplied_as_it_was_for_the_norm(
    compiled: list[dict[str, Any]],
) -> None:
    """The same instructions as often: in another order a unit whose terms cancel could pass the clip norm."""
    lines = [line for line in compiled if line["row"] == "conv2d_recompute"]
    assert lines
    for norm, total in zip(lines[::2], lines[1::2], strict=True):
        assert (norm["kernel"], total["kernel"]) == ("_unit_kernel", "_recompute_kernel")
        assert norm["products"] == total["products"] != {}, norm
