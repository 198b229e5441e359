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

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
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


def tool(name: str, *options: str, cubin: bytes) -> str:
    """What one of CUDA's binary tools, which triton ships, says of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of stack a thread): the stack is where registers spill to."""
    report = tool("cuobjdump", "-res-usage", cubin=cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])


def issued(cubin: bytes) -> float | None:
    """Warp instructions per 2^10 multiply-adds in the innermost loop of a kernel of warpgroup products."""
    labels: dict[str, int] = {}
    code: list[str] = []
    loops: list[tuple[int, float]] = []
    for line in tool("nvdisasm", "-c", cubin=cubin).splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", code[-1])
            body = code[labels[back[1]] :] if back and back[1] in labels else []
            sizes = [re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", one) for one in body]
            # Four warps issue a warpgroup's product together.
            products = sum(int(s[1]) * int(s[2]) * int(s[3]) for s in sizes if s) / 4
            if products:
                loops.append((len(body), len(body) / products * 2**10))
    return min(loops)[1] if loops else None


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
                line |= {"issued": issued(kernel.asm["cubin"]) if "wgmma.mma_async" in ptx else None}
                line |= {"wgmma": "wgmma.mma_async" in ptx, "mma": "mma.sync" in ptx}
                line |= {
                    "runs": bool(re.search(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
                    "wide_copies": bool(re.search(r"cp\.async\.cg", ptx)),
                    "atomics": sorted(set(re.findall(r"\b(?:atom|red)\.[\w.:]+", ptx))),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
