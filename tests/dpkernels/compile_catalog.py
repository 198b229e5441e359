"""Compiles the catalogue's main shapes ahead of time for sm_90 and sm_80, without a GPU: one JSON line a
kernel.

Run in a process without TRITON_INTERPRET. The launchers themselves run, on meta tensors (shapes without
memory), so that what is compiled is exactly what a GPU would be given; only the launch is left out.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dpkernels.catalog import CATALOG, Row
from dpkernels.device import always_triton
from dpkernels.examples import Shape

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class NoGpu:
    """A driver that knows its architecture and nothing else."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def launches_compile_only(kernels: list[Any]) -> Iterator[None]:
    """Within it a launch compiles, appends to `kernels`, and does not run."""
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append((self.__name__, launch(self, *args, grid=grid, warmup=True, **options)))
        return kernels[-1][1]

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = launch


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of stack a thread): the stack is where registers spill to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])


def combinations(row: Row) -> Iterator[tuple[int, str, Shape]]:
    """(architecture, precision, shape): all main shapes in bf16 for sm_90, the first two in every precision
    for both,
    which takes each tile of the tables once."""
    for precision, dtype in PRECISIONS.items():
        if dtype in row.dtypes and (precision != "tf32" or row.tf32):
            yield from (
                (90, precision, shape) for shape in (row.main if precision == "bf16" else row.main[:2])
            )
            yield from ((80, precision, shape) for shape in row.main[:2])


def main() -> None:
    for row in CATALOG.values():
        for arch, precision, shape in combinations(row):
            driver.set_active(NoGpu(arch))
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            kernels: list[Any] = []
            with always_triton(), launches_compile_only(kernels):
                row.run(**row.inputs(shape, PRECISIONS[precision], "meta"))
            for name, kernel in kernels:
                registers, stack = resources(kernel.asm["cubin"])
                ptx = kernel.asm["ptx"]
                line = {
                    "row": row.name,
                    "kernel": name,
                    "arch": arch,
                    "precision": precision,
                    "shape": dict(shape),
                }
                line |= {"registers": registers, "stack": stack, "shared": kernel.metadata.shared}
                products = re.findall(r"(?:wgmma\.mma_async|mma\.sync|fma\.rn\.f32)[\w.:]*", ptx)
                line |= {"products": dict(Counter(products))}
                line |= {"wgmma": "wgmma.mma_async" in ptx, "mma": "mma.sync" in ptx}
                line |= {
                    "runs": bool(re.search(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
                    "wide_copies": bool(re.search(r"cp\.async\.cg", ptx)),
                    "atomics": bool(re.search(r"\b(atom|red)\.", ptx)),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
