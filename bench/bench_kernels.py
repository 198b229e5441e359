"""python bench/bench_kernels.py [--smoke] [--rows NAME ...] [--rounds N] [--reference]: time the catalogue's kernels.

Medians and quartiles are reported. Only the launch is timed, on ready buffers: the call as training makes it, including
what it allocates itself. --reference times the catalogue's truth too, in alternation: plain autograd in fp64 unit by
unit (integer arithmetic for exact kernels), slower than all kernels together. It is there for correctness and is not a
competitor; bench_step.py times competitors. The floor is the bytes that a kernel must read and write, divided by the
copy speed measured in the same run. One line per row, precision and main shape is appended to
bench/results/kernels.csv as it is measured, with device, date, versions and command. A case that fails gets a line
without times and a note that says why; the exit status is then 1.

Needs a CUDA GPU. --smoke runs tiny shapes in Triton's interpreter on a CPU to check that this script works: its times
say nothing about any kernel and are printed only.
"""

import argparse
import csv
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
RESULTS = ROOT / "bench" / "results" / "kernels.csv"
COPY_BYTES = 2**30
TIMES = [f"{name}{part}_ms" for name in ("kernel", "reference") for part in ("", "_q1", "_q3")]
COLUMNS = [
    *("row", "dtype", "shape", "rounds", "bytes", *TIMES, "floor_ms", "copy_gb_s", "note"),
    *("device", "date", "versions", "command"),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="run tiny shapes in the interpreter, on a CPU")
    parser.add_argument("--rows", nargs="+", help="rows of the catalogue (default: all)")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each kernel")
    parser.add_argument("--reference", action="store_true", help="time the fp64 reference too")
    parser.add_argument("--dtypes", nargs="+", help="such as bfloat16 (default: all of a row)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV")
    asked = parser.parse_args()
    if asked.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not asked.smoke and not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA GPU to time kernels on; --smoke checks this script without one\n")
    from dpkernels.catalog import CATALOG

    names = asked.rows or list(CATALOG)
    if unknown := set(names) - set(CATALOG):
        parser.exit(
            2, f"error: --rows: no row {', '.join(sorted(unknown))}; choose from {', '.join(CATALOG)}\n"
        )
    failed = False
    rounds = 1 if asked.smoke else asked.rounds
    for line in measured(names, asked.smoke, rounds, asked.reference, asked.dtypes):
        shown = ("row", "dtype", "kernel_ms", "reference_ms", "floor_ms", "note")
        print({key: line[key] for key in shown if key in line}, flush=True)
        failed |= "note" in line
        if not asked.smoke:
            append(line, asked.out)
    if asked.smoke:
        print("smoke run in the interpreter on a CPU: these times say nothing about any kernel")
    else:
        print(f"-> {asked.out}")
    return int(failed)


def measured(
    names: list[str], smoke: bool, rounds: int, reference: bool, dtypes: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one line per row, dtype and shape as it is measured; a failed one has a note instead of times."""
    import torch

    from dpkernels.catalog import CATALOG

    device = "cpu" if smoke else "cuda"
    speed = copy_speed(device, 2**20 if smoke else COPY_BYTES)
    for name in names:
        row = CATALOG[name]
        named = [d for d in row.dtypes if dtypes is None or str(d).removeprefix("torch.") in dtypes]
        for dtype in named[:1] if smoke else named:
            for shape in row.shapes[:1] if smoke else row.main:
                about = {"row": name, "dtype": str(dtype).removeprefix("torch."), "shape": dict(shape)}
                torch.manual_seed(0)
                try:
                    line = timed(row, row.inputs(shape, dtype, device), rounds, smoke, reference)
                except (
                    Exception
                ) as error:  # whatever a compiler or driver raises must not stop the other rows
                    reason = (str(error).strip() or "no message").splitlines()[0]
                    yield about | {"note": f"failed: {type(error).__name__}: {reason[:160]}"}
                    continue
                floor = {"floor_ms": line["bytes"] / speed * 1e3, "copy_gb_s": speed / 1e9}
                yield about | line | floor


def timed(row: Any, inputs: dict[str, Any], rounds: int, smoke: bool, reference: bool) -> dict[str, Any]:
    """Return medians and quartiles in ms of the kernel and, if asked, its reference, in turns on the same inputs."""
    from contextlib import nullcontext

    from dpkernels.device import interpreted

    call = row.call(**inputs)

    def kernel() -> None:
        with interpreted() if smoke else nullcontext():
            call.launch()

    kernel()
    outputs = call.outputs()
    calls = {"kernel": kernel} | ({"reference": lambda: row.reference(**inputs)} if reference else {})
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):  # the first turn warms up
        for name, timed_call in calls.items():
            taken = seconds(timed_call, smoke)
            if number >= 0:
                times[name].append(taken)
    line: dict[str, Any] = {"rounds": rounds, "bytes": tensor_bytes(inputs) + tensor_bytes(outputs)}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4) if rounds > 1 else values * 3
        line |= {f"{name}_ms": middle * 1e3, f"{name}_q1_ms": low * 1e3, f"{name}_q3_ms": high * 1e3}
    return line


def seconds(call: Callable[[], Any], smoke: bool) -> float:
    """Return how long `call` takes, in seconds, launches included."""
    import torch

    if smoke:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_speed(device: str, size: int) -> float:
    """Return bytes per second, read and written, of a large copy on this device: the peak behind the floor."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device == "cpu") for _ in range(10))
    return 2 * size / best


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in a value, nested or not."""
    from torch.utils._pytree import tree_leaves

    return sum(leaf.nbytes for leaf in tree_leaves(value) if hasattr(leaf, "nbytes"))


def append(line: dict[str, Any], path: Path) -> None:
    """Append a line to the results, with where and when it was measured."""
    import torch
    import triton

    where = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": f"torch {torch.__version__}, triton {triton.__version__}, python {platform.python_version()}",
        "command": shlex.join(["python", *sys.argv]),
    }
    path.parent.mkdir(exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(line | where)


if __name__ == "__main__":
    sys.exit(main())
