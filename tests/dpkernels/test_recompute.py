"""Recomputed sums: units dealt to programs, atomics on integers alone."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterError
from triton.runtime.jit import JITFunction

import dpkernels
from dpkernels import conv2d_triton, device
from dpkernels.conv2d_triton import Geometry, add_clipped_conv2d, conv2d_grads
from dpkernels.device import recompute_programs
from dpkernels.grid import add_shared

UNITS, WEIGHT, GEOMETRY = 5, (6, 5, 3, 3), Geometry(padding=(1, 1))
SCALE = torch.tensor([2.0**28, 3.0e8, 0.0, 1.7e7, 2.0**30])


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("programs", [1, 2, 5, 7])
def test_the_sum_is_the_same_to_the_bit_however_units_are_dealt_to_programs(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv2d_triton, "recompute_programs", lambda *shapes: programs)
    torch.manual_seed(3)
    x, g = torch.randn(UNITS * 2, 5, 7, 6), torch.randn(UNITS * 2, 6, 7, 6)
    weight, bias = torch.zeros(UNITS, *WEIGHT), torch.zeros(UNITS, 6)
    conv2d_grads(x, g, weight, bias, GEOMETRY)
    total, bias_total = torch.full(WEIGHT, 7), torch.full((6,), -3)
    add_clipped_conv2d(x, g, SCALE, total, bias_total, GEOMETRY)
    assert torch.equal(total, 7 + (weight * SCALE.view(-1, 1, 1, 1, 1)).round().long().sum(0))
    assert torch.equal(bias_total, -3 + (bias * SCALE.view(-1, 1)).round().long().sum(0))


def test_programs_fill_a_card_and_no_unit_is_without_one() -> None:
    assert recompute_programs(10, 64, 32 * 28 * 28) == 64  # long reductions: one unit per program
    assert recompute_programs(76, 16, 8 * 16 * 16) == 4  # short ones: few atomic additions
    assert recompute_programs(3, 64, 8) == 64  # few tiles: programs to fill a card come first
    assert recompute_programs(10_000, 3, 1) == 1
    assert recompute_programs(1, 1, 1) == 1


def kernels() -> Iterator[tuple[str, InterpretedFunction | JITFunction]]:
    """Every Triton function of the package."""
    for info in pkgutil.walk_packages(dpkernels.__path__, "dpkernels."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if isinstance(value, InterpretedFunction | JITFunction) and value.fn.__module__ == info.name:
                yield f"{info.name}.{name}", value


def test_no_kernel_adds_atomically_but_by_add_shared() -> None:
    users = {
        name
        for name, kernel in kernels()
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel.fn))))
        if isinstance(node, ast.Attribute) and node.attr.startswith("atomic")
    }
    assert users == {"dpkernels.grid.add_shared"}


@triton.jit
def _add_kernel(place: tl.tensor, value: tl.tensor) -> None:
    inside = tl.arange(0, 4) < 4
    add_shared(place + tl.arange(0, 4), tl.load(value + tl.arange(0, 4)), inside)


@pytest.mark.skipif(not device.INTERPRETER, reason="interpreted, and compiled by the tests above otherwise")
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64, torch.int32])
def test_floating_point_is_refused_where_programs_share_a_sum(dtype: torch.dtype) -> None:
    place, value = torch.ones(4, dtype=dtype), torch.arange(4).to(dtype)
    if dtype == torch.int64:
        _add_kernel[(3,)](place, value)
        assert torch.equal(place, 1 + 3 * value)
    else:
        with pytest.raises(InterpreterError, match="order"):
            _add_kernel[(3,)](place, value)
