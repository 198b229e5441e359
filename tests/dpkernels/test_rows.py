"""The blocks on rows of channels: each unit's own, whatever stands beside it or in the memory of its results."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from dpkernels import device
from dpkernels.attention import attend
from dpkernels.catalog import CATALOG
from dpkernels.rows import add_rows
from dpkernels.rows_norm import norm_act
from tests.dpkernels.test_catalog import compare, relative_error

pytestmark = pytest.mark.skipif(
    not device.INTERPRETER, reason="needs TRITON_INTERPRET=1, set before triton is first imported"
)
ROWS = [name for name in CATALOG if name.startswith(("rows", "attention"))]
# Four samples, one a unit, so that each result has a first axis of four.
SHAPES = {
    "rows_norm_forward": CATALOG["rows_norm"].shapes[0] | {"units": 4, "draws": 1},
    "rows_norm": CATALOG["rows_norm"].shapes[0] | {"units": 4, "draws": 1, "plus": 1},
    "rows_norm_forward_product": CATALOG["rows_norm_product"].shapes[0] | {"units": 4, "draws": 1},
    "rows_norm_product": CATALOG["rows_norm_product"].shapes[0] | {"units": 4, "draws": 1},
    "rows_add": {"rows": (4, 5, 7, 6), "terms": 2, "bias": True},
    "attention": {"samples": 4, "tokens": 20, "heads": 2, "width": 6},
}


def inputs_of(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    row = CATALOG[name]
    return row.inputs(SHAPES[name], row.dtypes[0], "cpu")


def test_a_units_gradients_are_the_sums_over_its_draws_and_its_norm_is_theirs() -> None:
    row = CATALOG["rows_norm"]
    with device.interpreted():
        compare(row, torch.float32, row.shapes[0], "cpu", row.tolerance(torch.float32))


def samples_of(value: Any) -> list[Tensor]:
    """Every tensor in an argument whose first axis is that of the samples, which only weights lack."""
    if isinstance(value, Tensor):
        return [value] if value.dim() > 1 else []
    if isinstance(value, dict):
        return samples_of([part for name, part in value.items() if name not in ("through", "weights")])
    values = value if isinstance(value, list | tuple) else ()
    return [tensor for part in values for tensor in samples_of(part)]


@pytest.mark.parametrize("name", ROWS)
def test_a_sample_that_is_replaced_changes_no_bit_of_the_others(name: str) -> None:
    others, found = [0, 1, 3], []
    for hostile in (False, True):
        inputs = inputs_of(name)
        if hostile:
            for tensor in samples_of(inputs):
                tensor[2] = torch.nan if tensor is samples_of(inputs)[0] else 1e30
        with device.interpreted():
            found.append(CATALOG[name].run(**inputs))
    before, after = found
    for part, value in before.items():
        assert torch.equal(value[others], after[part][others]), part
    assert any(not torch.equal(value[2], after[part][2]) for part, value in before.items())


@pytest.mark.parametrize("name", ROWS)
def test_what_the_memory_of_the_results_held_does_not_show(name: str, monkeypatch: Any) -> None:
    """Every result is stored by one program and not added to memory: what two programs add has no fixed order."""
    make, inputs, found = {"empty": torch.empty, "empty_like": torch.empty_like}, inputs_of(name), []
    for held in (1e3, -7.0):
        for function, honest in make.items():
            monkeypatch.setattr(
                torch, function, lambda *a, honest=honest, held=held, **k: honest(*a, **k).fill_(held)
            )
        with device.interpreted():
            found.append(CATALOG[name].run(**inputs))
        monkeypatch.undo()
    assert all(torch.equal(value, found[1][part]) for part, value in found[0].items())


@pytest.mark.parametrize(("mean", "first"), [(1e3, 0.0), (0.0, 1e3), (-30.0, 30.0)])
def test_statistics_survive_a_mean_far_from_zero_and_a_first_pixel_far_from_the_mean(
    mean: float, first: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 14, 14, 8) + mean
    x[:, 0, 0] += first
    one, zero = torch.ones(8), torch.zeros(8)
    with device.interpreted():
        y, _, rstd, _ = norm_act((x,), one, zero, 2, 1e-5, act=False)
    truth, _, exact, _ = norm_act((x.double(),), one.double(), zero.double(), 2, 1e-5, act=False)
    assert relative_error(y, truth) < 1e-4
    assert relative_error(rstd, exact) < 1e-4


def test_rows_that_are_not_contiguous_are_refused() -> None:
    x = torch.randn(2, 3, 4, 8).transpose(1, 2)
    with device.interpreted():
        for call in (
            lambda: add_rows((x,)),
            lambda: norm_act((x,), torch.ones(8), torch.zeros(8), 2, 1e-5, act=True),
            lambda: attend(
                torch.randn(2, 24, 5).mT, 2, torch.randn(2, 5, 1, 8), torch.randn(8, 8), torch.randn(8)
            ),
        ):
            with pytest.raises(ValueError, match="contiguous"):
                call()
