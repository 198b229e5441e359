"""Dispatch between Triton and torch, and every tile size.

Each `<layer>_triton.py` holds Triton kernels; `<layer>.py` next to it holds the same mathematics in torch. Which of the
two runs is the caller's choice: it imports one or the other. `chacha.py` and `noise_step.py` hold both and choose with
`use_triton`: the kernel for CUDA tensors, torch for all others. Inside `interpreted()` CPU tensors take the kernel too,
in Triton's interpreter. Nothing here queries the hardware: a tile depends on precision and shape class alone (in the
interpreter, one tile serves all).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

# Triton reads this variable when a kernel's module is imported, so it is read once here as well.
INTERPRETER = os.environ.get("TRITON_INTERPRET", "0") == "1"
_forced: ContextVar[bool] = ContextVar("forced", default=False)


def use_triton(tensor: Tensor) -> bool:
    """Return whether a call on `tensor` runs on Triton rather than in torch."""
    # fp64 is for the reference: no kernel takes it.
    return tensor.dtype != torch.float64 and (tensor.is_cuda or _forced.get())


@contextmanager
def interpreted() -> Iterator[None]:
    """Run the Triton kernels on CPU tensors, in the interpreter, within this context. Slow: for tests.

    Raises RuntimeError unless TRITON_INTERPRET=1 was set before Triton was first imported.
    """
    if not INTERPRETER:
        raise RuntimeError(
            "TRITON_INTERPRET is not 1: set it before importing dpkernels to run kernels on the CPU"
        )
    with always_triton():
        yield


@contextmanager
def always_triton() -> Iterator[None]:
    """Send all tensors but fp64 to Triton within this context, meta tensors too: for ahead-of-time compiles."""
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


class Tile(NamedTuple):
    """One program's part of a matrix product and how the compiler schedules it.

    A program owns `rows` x `columns` of the result (output channels x input channels and taps) and loops over
    the reduction (draws and positions) in steps of `depth`.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


# Per-unit weight gradients, by the operands' precision and the shape class (`_shape_class`). Sizes follow Hopper's
# matrix instructions (64 rows per warpgroup); fp32 products run on the CUDA cores, where small tiles keep within the
# registers. bf16: the fastest of what was tried on an H100 on 2026-11-27, but for "narrow", which was not tried. The
# others are chosen so that no configuration spills on sm_80 or sm_90.
GEMM_TILES: dict[tuple[str, str], Tile] = {
    ("bf16", "wide"): Tile(64, 64, 64, num_warps=8, num_stages=3),
    ("bf16", "narrow"): Tile(32, 128, 64, num_warps=4, num_stages=3),
    ("bf16", "pointwise"): Tile(64, 128, 128, num_warps=4, num_stages=3),
    ("bf16", "first"): Tile(64, 16, 256, num_warps=4, num_stages=2),
    ("bf16", "last"): Tile(16, 64, 128, num_warps=4, num_stages=3),
    ("tf32", "wide"): Tile(64, 128, 32, num_warps=8, num_stages=3),
    ("tf32", "narrow"): Tile(32, 128, 32, num_warps=4, num_stages=3),
    ("fp32", "wide"): Tile(64, 64, 32, num_warps=4, num_stages=2),
    ("fp32", "narrow"): Tile(32, 64, 32, num_warps=4, num_stages=2),
}
# The recompute pass also holds an int64 tile, twice the registers of the fp32 one, hence more warps.
RECOMPUTE_TILES: dict[tuple[str, str], Tile] = {
    ("bf16", "wide"): Tile(64, 128, 64, num_warps=8, num_stages=3),
    ("bf16", "narrow"): Tile(32, 64, 64, num_warps=8, num_stages=3),
    ("tf32", "wide"): Tile(64, 128, 32, num_warps=8, num_stages=3),
    ("tf32", "narrow"): Tile(32, 128, 32, num_warps=8, num_stages=3),
    ("fp32", "wide"): Tile(64, 64, 32, num_warps=8, num_stages=2),
    ("fp32", "narrow"): Tile(32, 64, 32, num_warps=8, num_stages=2),
}
WIDE_ROWS, FEW_CHANNELS = 64, 4
# How a recomputed sum deals units to programs: one program's units reduce over at least LENGTH terms, so that its one
# atomic addition costs little beside its products, unless fewer than PROGRAMS programs would be left to fill a card.
# This picks the fastest of what was measured on an H100 on 2026-11-27: 64 units of 25,088 terms, one per program, in
# 0.51 ms (9.2 ms with one program per tile); 16 units of 2,048 terms, four per program, in 0.18 ms (0.21 ms with one).
RECOMPUTE_LENGTH = 8192
RECOMPUTE_PROGRAMS = 256
# In the interpreter a `tl.dot` costs milliseconds whatever its size: few steps, huge tiles.
INTERPRETED_TILE = Tile(64, 256, 1024, num_warps=1, num_stages=1)

# For the kernels that only stream memory: elements that a program owns, or processes per step.
CLIP_SUM_BLOCK = 1024
GROUP_NORM_ELEMENTS = 2048
EMBEDDING_ROWS, EMBEDDING_COLUMNS = 16, 64
# ChaCha20 blocks per program; each yields eight normals.
CHACHA_BLOCKS = 128


def gemm_tile(precision: str, weight_shape: Sequence[int], *, recompute: bool = False) -> Tile:
    """Return the tile for the gradient of a weight [O, I, kh, kw]; precision is bf16, tf32 or fp32."""
    if INTERPRETER:
        return INTERPRETED_TILE
    if precision == "bf16" and not recompute:
        return GEMM_TILES[precision, _shape_class(weight_shape)]
    plain = "wide" if weight_shape[0] >= WIDE_ROWS else "narrow"
    return (RECOMPUTE_TILES if recompute else GEMM_TILES)[precision, plain]


def _shape_class(weight_shape: Sequence[int]) -> str:
    """Return a weight's class: the first and last layer of a network have images' few channels on one side."""
    rows, channels, height, width = weight_shape
    if rows < WIDE_ROWS:
        return "last" if rows <= FEW_CHANNELS else "narrow"
    if channels <= FEW_CHANNELS:
        return "first"
    return "pointwise" if height == width == 1 else "wide"


def recompute_programs(tiles: int, units: int, reduction: int) -> int:
    """Return how many programs share the units of each tile of a recomputed sum; reduction: K·T, terms per unit."""
    per_program = min(-(-RECOMPUTE_LENGTH // reduction), max(1, units * tiles // RECOMPUTE_PROGRAMS))
    return -(-units // per_program)


def precision_of(dtype: torch.dtype) -> str:
    """Return the precision of products of `dtype` operands: bf16 (fp16 too), tf32 (if torch allows it) or fp32."""
    if dtype in (torch.bfloat16, torch.float16):
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
