"""Every kernel and tile compiles for Hopper and Ampere, without a GPU, and keeps its values in registers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

import dpkernels
from dpkernels.catalog import CATALOG

PACKAGE = Path(dpkernels.__file__).parent
# Shared memory a program may take: H100, A100.
SHARED = {90: 227 * 1024, 80: 163 * 1024}

# Bytes of stack beyond a row's own that triton 3.6's compiler takes: a larger frame for libdevice's sine; two words of
# group norm's backward in fp32, in 64 registers; the addition to what is stored, by the 1x1 tile on sm_80,
# after the loop; ten words of two sources' 1x1 weight gradients and two of attention's backward on sm_80, which use all
# 255 registers (where these lie was not looked at).
OLDER_STACK = {
    "noise_step": 8,
    "group_norm": 8,
    "linear_added_in_bf16": 200,
    "conv2d_two_sources": 40,
    "attention": 8,
}


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
    more = OLDER_STACK if triton.__version__.startswith("3.6.") else {}
    spilling = [
        line for line in compiled if line["stack"] > CATALOG[line["row"]].stack + more.get(line["row"], 0)
    ]
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


def test_a_row_of_taps_issues_less_than_half_as_much_per_product_as_the_general_kernel(
    compiled: list[dict[str, Any]],
) -> None:
    """What kept the general kernel from the matrix units' speed: finding addresses and masks for every tap."""
    loops = {
        line["kernel"]: line["issued"]
        for line in compiled
        if line["arch"] == 90 and line["precision"] == "bf16" and line["row"] in ("conv2d", "conv2d_taps")
        if line["shape"]["cin"] == line["shape"]["cout"] == 64
    }
    assert loops.keys() == {"_unit_kernel", "_taps_kernel"}
    assert loops["_taps_kernel"] < loops["_unit_kernel"] / 2


def test_only_integers_are_added_atomically(compiled: list[dict[str, Any]]) -> None:
    """In any order they give the same sum; floating point does not."""
    atomics = {kind for line in compiled for kind in line["atomics"]}
    assert atomics  # the recomputed sums'
    assert all(re.fullmatch(r"(atom|red)[\w.]*\.add\.[us]64", kind) for kind in atomics), atomics


def test_blocks_on_rows_of_channels_read_in_runs_of_16_bytes(compiled: list[dict[str, Any]]) -> None:
    """Wherever a group has a power of two of channels; the sums over draws are small."""
    lines = [line for line in compiled if line["row"].startswith(("rows", "attention"))]
    assert lines
    for line in lines:
        shape = line["shape"]
        padded = "sources" in shape and (sum(shape["sources"]) // shape["groups"]).bit_count() != 1
        assert line["runs"] or padded or line["kernel"] == "_draws_kernel", line


def test_what_is_recomputed_for_the_sum_is_multiplied_as_it_was_for_the_norm(
    compiled: list[dict[str, Any]],
) -> None:
    """The same instructions as often: in another order a unit whose terms cancel could pass the clip norm."""
    lines = [line for line in compiled if line["row"] == "conv2d_recompute"]
    assert lines
    for norm, total in zip(lines[::2], lines[1::2], strict=True):
        assert (norm["kernel"], total["kernel"]) == ("_unit_kernel", "_recompute_kernel")
        assert norm["products"] == total["products"] != {}, norm
