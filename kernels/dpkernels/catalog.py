"""Every kernel with its reference, example shapes and tolerances; tests, compile checks and benchmarks loop over it.

To add a kernel, add its file, a module with three functions in `examples/` and a row here. The row brings its tests
(interpreter, random shapes, GPU), its ahead-of-time compilation for two architectures and its benchmark.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dpkernels.examples import (
    Call,
    Outputs,
    Shape,
    attention,
    chacha,
    clip_sum,
    conv2d,
    conv2d_inputs,
    embedding,
    group_norm,
    linear,
    noise_step,
    rows,
)

# Relative to fp64 on the same inputs. bf16 means bf16 inputs and fp32 sums, against a bf16-input oracle; so does tf32,
# with operands rounded to tf32.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-5}
TF32_TOLERANCE = 1e-5
FLOATS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """One kernel.

    shapes: tested, odd sizes included. choices: values that random shapes are drawn from. main: shapes like those of
    the shipped recipes' U-Nets, compiled ahead of time without spills, and benchmarked. exact: no tolerance.
    """

    name: str
    inputs: Callable[[Shape, torch.dtype, str], dict[str, Any]]
    call: Callable[..., Call]
    reference: Callable[..., Outputs]
    shapes: tuple[Shape, ...]
    choices: Mapping[str, tuple[Any, ...]]
    main: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    exact: bool = False
    # Bytes of stack allowed per thread; the row says why.
    stack: int = 0

    @property
    def tf32(self) -> bool:
        """Return whether the kernel multiplies matrices, so that fp32 inputs may run in tf32."""
        return self.name.startswith(("conv2d", "linear")) and torch.float32 in self.dtypes

    def run(self, **inputs: Any) -> Outputs:
        """Launch once on fresh buffers and return what it wrote."""
        call = self.call(**inputs)
        call.launch()
        return call.outputs()

    def tolerance(self, dtype: torch.dtype) -> float:
        """Return the allowed relative error for inputs of `dtype`."""
        return 0.0 if self.exact else TOLERANCE[dtype]


def _conv(
    units: int, draws: int, cin: int, cout: int, size: tuple[int, int], kernel: int = 3, **more: Any
) -> Shape:
    plain = {"stride": 1, "padding": kernel // 2, "layout": "contiguous"}
    return (
        {"units": units, "draws": draws, "cin": cin, "cout": cout, "size": size, "kernel": kernel}
        | plain
        | more
    )


CONV_SHAPES = (
    _conv(2, 2, 5, 7, (9, 9)),
    _conv(3, 1, 8, 70, (8, 8), stride=2, layout="channels_last"),
    _conv(2, 3, 4, 6, (7, 5), kernel=1),
    _conv(2, 2, 40, 4, (9, 6), padding=2, dilation=2, layout="view"),
    _conv(1, 1, 1, 1, (1, 1)),
    _conv(2, 2, 5, 7, (4, 3), scale=2),
)
CONV_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "units": (1, 2, 3),
    "draws": (1, 2, 4),
    "cin": (1, 3, 16),
    "cout": (1, 5, 66),
    "size": ((5, 5), (6, 9), (8, 3)),
    "kernel": (1, 3),
    "stride": (1, 2),
    "padding": (0, 1),
    "layout": ("contiguous", "channels_last", "view"),
}
CONV_MAIN = (
    _conv(64, 8, 64, 64, (28, 28), stride=2, layout="channels_last"),
    _conv(64, 8, 32, 32, (32, 32), layout="channels_last"),
    _conv(64, 8, 64, 64, (28, 28), layout="channels_last"),
    _conv(64, 8, 64, 128, (16, 16), kernel=1, layout="channels_last"),
    _conv(64, 8, 256, 256, (8, 8), layout="channels_last"),
)
# A whole tile of channels, in the interpreter too.
TAPS_SHAPES = (
    _conv(2, 2, 256, 64, (5, 6), layout="channels_last"),
    _conv(3, 1, 256, 64, (2, 9), layout="channels_last"),
)


def _linear(
    units: int, draws: int, positions: int | None, cin: int, cout: int, layout: str = "contiguous"
) -> Shape:
    return {
        "units": units,
        "draws": draws,
        "positions": positions,
        "cin": cin,
        "cout": cout,
        "layout": layout,
    }


LINEAR_SHAPES = (_linear(3, 2, 5, 6, 7), _linear(2, 1, None, 9, 70), _linear(2, 3, 4, 8, 3, "transposed"))
LINEAR_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "units": (1, 3),
    "draws": (1, 4),
    "positions": (None, 1, 7),
    "cin": (1, 9),
    "cout": (2, 65),
    "layout": ("contiguous", "transposed"),
}
LINEAR_MAIN = (_linear(64, 8, 196, 64, 64), _linear(64, 8, None, 256, 64))


def _norm(units: int, draws: int, channels: int, groups: int, size: tuple[int, ...], layout: str) -> Shape:
    return {
        "units": units,
        "draws": draws,
        "channels": channels,
        "groups": groups,
        "size": size,
        "layout": layout,
    }


NORM_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "units": (1, 3),
    "draws": (1, 4),
    "channels": (8, 24),
    "groups": (2, 4),
    "size": ((6,), (5, 5), (3, 50)),
    "layout": ("contiguous", "channels_last"),
}
NORM_SHAPES = (
    _norm(3, 2, 6, 3, (5, 7), "contiguous"),
    _norm(2, 1, 24, 4, (9,), "contiguous"),
    _norm(2, 2, 8, 2, (4, 4), "channels_last"),
)


def _embedding(units: int, draws: int, rows: int, width: int, padding: int | None = None) -> Shape:
    return {"units": units, "draws": draws, "rows": rows, "width": width, "padding": padding}


def _row(name: str, family: Any, *shapes: Any, **more: Any) -> Row:
    """Return the row of a family's main kernel: a module of `examples`."""
    return Row(name, family.inputs, family.call, family.truth, *shapes, **more)


def _in_bf16(row: Row, *, accumulate: bool = False, stack: int = 0) -> Row:
    """Return the row as bf16 training launches it: gradients stored in bf16, or added to a first use's."""
    how = {"stored": "bfloat16", "accumulate": accumulate}
    return replace(
        row,
        name=f"{row.name}_{'added' if accumulate else 'stored'}_in_bf16",
        shapes=tuple({**shape, **how} for shape in row.shapes),
        choices={**row.choices, **{key: (value,) for key, value in how.items()}},
        main=tuple({**shape, **how} for shape in row.main[:2]),  # covers each bf16 tile once
        dtypes=(torch.bfloat16,),
        stack=stack,
    )


CATALOG: dict[str, Row] = {
    row.name: row
    for row in (
        _row(
            "conv2d",
            conv2d,
            CONV_SHAPES,
            CONV_CHOICES,
            CONV_MAIN,
            stack=48,  # the tile of 1x1 convolutions, outside the loop
        ),
        Row(
            "conv2d_recompute",
            conv2d.inputs,
            conv2d.recompute_call,
            conv2d.recompute_truth,
            CONV_SHAPES,
            CONV_CHOICES,
            CONV_MAIN,
        ),
        _row(
            "conv2d_taps",
            conv2d,
            TAPS_SHAPES,
            {
                **CONV_CHOICES,
                **{"cin": (256,), "cout": (64,), "kernel": (3,), "stride": (1,), "padding": (1,)},
                "layout": ("channels_last",),
            },
            (
                _conv(64, 8, 64, 64, (28, 28), layout="channels_last"),
                _conv(64, 8, 256, 256, (8, 8), layout="channels_last"),
                _conv(64, 8, 128, 64, (28, 28), layout="channels_last"),
            ),
            dtypes=(torch.bfloat16,),
            stack=72,  # on sm_80, outside the loop
        ),
        _row(
            "conv2d_first",
            conv2d,
            (_conv(2, 2, 1, 64, (9, 8), layout="channels_last"), _conv(2, 1, 3, 66, (6, 5))),
            {**CONV_CHOICES, "cin": (1, 3, 4), "cout": (64, 66)},
            (
                _conv(64, 8, 1, 64, (28, 28), layout="channels_last"),
                _conv(64, 8, 3, 128, (32, 32), layout="channels_last"),
            ),
            dtypes=(torch.bfloat16,),  # has a tile of its own; fp32, which spills on sm_80, has not
        ),
        _row(
            "conv2d_last",
            conv2d,
            (_conv(2, 2, 64, 1, (9, 8), layout="channels_last"), _conv(2, 1, 20, 3, (6, 5))),
            {**CONV_CHOICES, "cin": (16, 64), "cout": (1, 3, 4)},
            (
                _conv(64, 8, 64, 1, (28, 28), layout="channels_last"),
                _conv(64, 8, 128, 3, (32, 32), layout="channels_last"),
            ),
            dtypes=(torch.bfloat16,),
        ),
        _row(
            "linear",
            linear,
            LINEAR_SHAPES,
            LINEAR_CHOICES,
            LINEAR_MAIN,
            stack=48,  # the tile of 1x1 convolutions, outside the loop
        ),
        Row(
            "linear_recompute",
            linear.inputs,
            linear.recompute_call,
            linear.recompute_truth,
            LINEAR_SHAPES,
            LINEAR_CHOICES,
            LINEAR_MAIN,
        ),
        Row(
            "linear_shared",
            linear.inputs,
            linear.shared_call,
            linear.shared_truth,
            LINEAR_SHAPES,
            LINEAR_CHOICES,
            LINEAR_MAIN[:1],
            stack=48,  # as linear
        ),
        _row(
            "group_norm",
            group_norm,
            NORM_SHAPES,
            NORM_CHOICES,
            (_norm(64, 8, 64, 16, (28, 28), "channels_last"),),
        ),
        Row(
            "group_norm_forward",
            group_norm.inputs,
            group_norm.forward_call,
            group_norm.forward_truth,
            NORM_SHAPES,
            NORM_CHOICES,
            (_norm(64, 8, 64, 16, (28, 28), "channels_last"),),
        ),
        _row(
            "embedding",
            embedding,
            (_embedding(3, 4, 11, 20), _embedding(2, 1, 17, 70, 16), _embedding(1, 3, 1, 1)),
            {"units": (1, 3), "draws": (1, 5), "rows": (1, 3, 20), "width": (4, 65), "padding": (None, 0)},
            (_embedding(64, 8, 11, 128),),
        ),
        _row(
            "clip_sum",
            clip_sum,
            ({"units": 3, "count": 1500}, {"units": 1, "count": 7}),
            {"units": (1, 4), "count": (1, 1023, 2100)},
            ({"units": 64, "count": 1_619_267},),
        ),
        _row(
            "chacha",
            chacha,
            (
                {"blocks": 200, "first": 0},
                {"blocks": 1, "first": 2**32 - 1},
                {"blocks": 3, "first": 2**31 - 1},
            ),
            {"blocks": (1, 129), "first": (0, 5, 2**31)},
            ({"blocks": 200_000, "first": 0},),
            dtypes=(torch.float32,),
            exact=True,
        ),
        _row(
            "noise_step",
            noise_step,
            ({"count": 2003, "step": 0}, {"count": 1, "step": 9}),
            {"count": (7, 8, 1030), "step": (0, 999)},
            ({"count": 1_619_267, "step": 5},),
            dtypes=(torch.float32,),
            # libdevice's sine keeps a table there for angles that never occur.
            stack=40,
        ),
    )
}
CATALOG |= {
    row.name: row
    for row in (
        # On sm_80 with 32 rows, three words spill to stay at 128 registers: once per program, after the loop.
        _in_bf16(CATALOG["conv2d"], stack=16),
        _in_bf16(CATALOG["conv2d_taps"], stack=104),
        _in_bf16(CATALOG["conv2d_taps"], accumulate=True, stack=88),
        *(_in_bf16(CATALOG[name]) for name in ("linear", "linear_shared", "group_norm", "embedding")),
        # On sm_80 with 64 rows, two words, after the loop.
        _in_bf16(CATALOG["conv2d"], accumulate=True, stack=8),
        _in_bf16(CATALOG["linear"], accumulate=True),
    )
}
CATALOG |= {fields["name"]: Row(**fields) for fields in (*conv2d_inputs.ROWS, *attention.ROWS, *rows.ROWS)}
