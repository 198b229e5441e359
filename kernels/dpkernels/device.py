"""Which path a call takes, and the tile tables: the one place that knows about devices.

A kernel file holds a Triton kernel and, beside it, the same mathematics in torch. CUDA tensors take the
kernel, all others torch; inside `interpreted()` CPU tensors take the kernel too, in Triton's interpreter.
Nothing here looks at the hardware: a tile is chosen by dtype and shape class alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

# Triton reads this variable when a kernel's module is imported; so it is read once here as well.
INTERPRETER = os.environ.get("TRITON_INTERPRET", "0") == "1"
_forced: ContextVar[bool] = ContextVar("forced", default=False)


def use_triton(tensor: Tensor) -> bool:
    """Whether the call that `tensor` is an argument of runs on Triton (True) or in torch (False)."""
    # fp64 is the reference's: no kernel takes it.
    return tensor.dtype != torch.float64 and (tensor.is_cuda or _forced.get())


@contextmanager
def interpreted() -> Iterator[None]:
    """Within it CPU tensors go through the Triton kernels, in the interpreter. Slow: for tests.

    Raises RuntimeError unless TRITON_INTERPRET=1 was set before Triton was first imported.
    """
    if not INTERPRETER:
        raise RuntimeError("set TRITON_INTERPRET=1 before dpkernels is imported, to run kernels on the CPU")
    with always_triton():
        yield


@contextmanager
def always_triton() -> Iterator[None]:
    """Within it every tensor takes the Triton path, meta tensors included: for compiling ahead of time."""
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


class Tile(NamedTuple):
    """One program's share of a matrix product and how the compiler schedules it.

    A program owns `rows` x `columns` of the result (output channels x input channels and taps) and walks the
    reduction (draws and positions) in steps of `depth`.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_phases: int


# Per-unit weight gradients, by the operands' dtype and the shape class. A class is named after the result's
# narrower side: "wide" from 64 output channels on. Sizes follow Hopper's matrix instructions (64 rows a
# warpgroup); fp32 products run on the ordinary cores, where small tiles keep the registers.
# Not tuned by measurement yet: chosen so that no configuration spills on sm_80 or sm_90.
GEMM_TILES: dict[tuple[str, str], Tile] = {
    ("bf16", "wide"): Tile(64, 128, 64, num_warps=8, num_phases=3),
    ("bf16", "narrow"): Tile(32, 128, 64, num_warps=4, num_phases=3),
    ("tf32", "wide"): Tile(64, 128, 32, num_warps=8, num_phases=3),
    ("tf32", "narrow"): Tile(32, 128, 32, num_warps=4, num_phases=3),
    ("fp32", "wide"): Tile(64, 64, 32, num_warps=4, num_phases=2),
    ("fp32", "narrow"): Tile(32, 64, 32, num_warps=4, num_phases=2),
}
# The recompute pass also holds an int64 tile, twice the registers of the fp32 one: twice the warps.
RECOMPUTE_TILES: dict[tuple[str, str], Tile] = {
    ("bf16", "wide"): Tile(64, 128, 64, num_warps=8, num_phases=3),
    ("bf16", "narrow"): Tile(32, 128, 64, num_warps=8, num_phases=3),
    ("tf32", "wide"): Tile(64, 128, 32, num_warps=8, num_phases=3),
    ("tf32", "narrow"): Tile(32, 128, 32, num_warps=8, num_phases=3),
    ("fp32", "wide"): Tile(64, 64, 32, num_warps=8, num_phases=2),
    ("fp32", "narrow"): Tile(32, 64, 32, num_warps=8, num_phases=2),
}
WIDE_ROWS = 64
# A step of `tl.dot` costs milliseconds in the interpreter whatever its size: few steps, huge tiles.
INTERPRETED_TILE = Tile(64, 256, 1024, num_warps=1, num_phases=1)

# The kernels that only stream memory: how many elements a program owns, or takes in one step.
CLIP_SUM_BLOCK = 1024
GROUP_NORM_ELEMENTS = 2048
EMBEDDING_ROWS, EMBEDDING_COLUMNS = 16, 64
# ChaCha20 blocks a program makes: one yields eight normals.
CHACHA_BLOCKS = 128


def gemm_tile(precision: str, rows: int, *, recompute: bool = False) -> Tile:
    """The tile for a weight gradient with `rows` output channels; precision is bf16, tf32 or fp32."""
    if INTERPRETER:
        return INTERPRETED_TILE
    shape_class = "wide" if rows >= WIDE_ROWS else "narrow"
    return (RECOMPUTE_TILES if recompute else GEMM_TILES)[precision, shape_class]


def precision_of(dtype: torch.dtype) -> str:
    """What a product of `dtype` operands runs in: bf16 (and fp16), tf32 (if torch allows it) or fp32."""
    if dtype in (torch.bfloat16, torch.float16):
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
