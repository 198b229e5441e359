"""Every catalogue row against its reference, for fixed and random shapes, interpreted and on a GPU."""

from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from dpkernels.catalog import CATALOG, TF32_TOLERANCE, Row
from dpkernels.device import interpreted
from dpkernels.examples import Outputs, Shape

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
CASES = [
    pytest.param(row, dtype, shape, id=f"{row.name}-{NAMES[dtype]}-{number}")
    for row in CATALOG.values()
    for dtype in row.dtypes
    for number, shape in enumerate(row.shapes)
]


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    size = truth.double().norm().clamp(min=1e-30)
    return float((value.double() - truth.double()).norm() / size)


def check(outputs: Outputs, truths: Outputs, tolerance: float) -> None:
    assert outputs.keys() == truths.keys()
    if {"weight", "squares"} <= outputs.keys() and outputs["weight"].is_floating_point():
        # Norms are of what is stored, whatever rounding that took: to the rounding of fp64.
        stored = sum(
            outputs[k].double().flatten(1).square().sum(1) for k in ("weight", "bias") if k in outputs
        )
        assert relative_error(outputs["squares"], stored) <= 1e-12
        if outputs["weight"].dtype == torch.bfloat16:
            truths = {name: truth for name, truth in truths.items() if name != "squares"}
    for name, truth in truths.items():
        assert outputs[name].shape == truth.shape
        if truth.dtype == torch.bfloat16:
            assert outputs[name].dtype == truth.dtype
        # Where the result is bf16 its last bit is allowed: the interpreter cuts, a GPU rounds.
        allowed = max(tolerance, 2.0**-7) if truth.dtype == torch.bfloat16 else tolerance
        assert relative_error(outputs[name], truth) <= allowed, name


def compare(row: Row, dtype: torch.dtype, shape: Shape, device: str, tolerance: float) -> None:
    torch.manual_seed(0)
    inputs = row.inputs(shape, dtype, device)
    check(row.run(**inputs), row.reference(**inputs), tolerance)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("row", "dtype", "shape"), CASES)
def test_kernel_equals_its_reference(row: Row, dtype: torch.dtype, shape: Shape) -> None:
    compare(row, dtype, shape, "cpu", row.tolerance(dtype))


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is at hand: the gpu tests run the kernels themselves"
)
@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_kernel_equals_its_reference_for_random_shapes(row: Row) -> None:
    strategies = {name: st.sampled_from(values) for name, values in row.choices.items()}

    @settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(shape=st.fixed_dictionaries(strategies), dtype=st.sampled_from(row.dtypes))
    def equal(shape: dict[str, Any], dtype: torch.dtype) -> None:
        with interpreted():
            compare(row, dtype, shape, "cpu", row.tolerance(dtype))

    equal()


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("row", "dtype", "shape"), CASES)
def test_kernel_equals_its_reference_on_a_gpu(row: Row, dtype: torch.dtype, shape: Shape) -> None:
    compare(row, dtype, shape, "cuda", row.tolerance(dtype))


def to_tf32(operand: torch.Tensor) -> torch.Tensor:
    """Round fp32 to ten bits of mantissa: to the nearest, ties away from zero."""
    mantissa, exponent = torch.frexp(operand.double())
    return ((mantissa.abs() * 2**11 + 0.5).floor() * operand.sign() * 2.0 ** (exponent - 11)).float()


def compare_tf32(row: Row, shape: Shape, device: str) -> None:
    """Weights are exact products of rounded operands, summed in fp32; biases and factors are not products in tf32."""
    torch.manual_seed(0)
    inputs = row.inputs(shape, torch.float32, device)
    rounded = inputs | {name: to_tf32(inputs[name]) for name in ("x", "grad_out")}
    outputs, truths = row.run(**inputs), row.reference(**inputs)
    # A product of two operands errs by 2⁻¹⁰ at most.
    assert relative_error(outputs.pop("squares"), truths.pop("squares")) <= 2.0**-8
    check(outputs, truths | {"weight": row.reference(**rounded)["weight"]}, TF32_TOLERANCE)


TF32_CASES = [
    pytest.param(row, shape, id=f"{row.name}-{number}")
    for row in CATALOG.values()
    if row.tf32
    for number, shape in enumerate(row.shapes)
]


@pytest.mark.usefixtures("interpreter", "tf32")
@pytest.mark.parametrize(("row", "shape"), TF32_CASES)
def test_tf32_products_are_of_rounded_operands(row: Row, shape: Shape) -> None:
    compare_tf32(row, shape, "cpu")


def test_tf32_operands_that_are_cut_as_the_hardware_does_would_be_seen() -> None:
    torch.manual_seed(0)
    operand = torch.randn(4096)
    cut = (operand.view(torch.int32) & -0x2000).view(torch.float32)
    assert relative_error(cut, operand) > 2 * relative_error(to_tf32(operand), operand)
    assert relative_error(cut, to_tf32(operand)) > 30 * TF32_TOLERANCE


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("row", "shape"), TF32_CASES)
def test_tf32_products_are_of_rounded_operands_on_a_gpu(row: Row, shape: Shape) -> None:
    compare_tf32(row, shape, "cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_kernel_repeats_to_the_bit_on_a_gpu(row: Row) -> None:
    for dtype in row.dtypes:
        torch.manual_seed(0)
        inputs = row.inputs(row.main[0], dtype, "cuda")
        first, second = row.run(**inputs), row.run(**inputs)
        assert all(torch.equal(first[name], second[name]) for name in first)
