"""python bench/bench_step.py [--nets ...] [--draws ...] [--ways ...] [--quick] [--plot FILE]: time a training step.

For each network and number of draws K, every way of doing a step (see step_ways.py) runs in its own process, as in
training, and the ways take turns, round after round. A turn times the plain step and the way's step back to back,
swapping their order every round; the ratio is that of the two times, and its median over rounds is reported with
quartiles. The plain way's own row compares plain with plain and shows the noise. 'Ours' is the complete private step:
per-unit gradients, clipping, exact int64 sum. A turn in which other processes took more than a tenth of the CPU time is
repeated until --patience runs out; then all turns count, and the note says so. Peak memory is what a way adds to the
network and its samples: peak resident memory of its process on a CPU, the allocator's peak on a GPU. Rows are appended
to a CSV in bench/results/. A way that cannot run, or not to the end, is printed with the reason and gets a row without
times; the exit status is 1 if it is one of ours.

On a machine that is never idle, `--clock cpu --threads 1` measures a worker's CPU time instead, which time spent
waiting for a CPU does not lengthen.
"""

import argparse
import csv
import shlex
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

from bench.step_nets import CPU_NETS, GPU_NETS, NETS, microbatch  # noqa: E402
from bench.step_plot import plot  # noqa: E402
from bench.step_ways import NOTES, WAYS  # noqa: E402
from bench.step_worker import CLOCKS, Work, Worker  # noqa: E402

COLUMNS = [
    *("date", "device", "threads", "clock", "torch", "triton", "diffusers", "opacus", "precision"),
    *("net", "parameters", "size", "units", "draws", "way", "ms", "ms_q1", "ms_q3"),
    *("ratio", "ratio_q1", "ratio_q3", "images_per_s", "peak_mib", "rounds", "note", "command"),
]
# Fraction of all CPUs used by other processes, above which a turn counts as disturbed.
MAX_BY_OTHERS = 0.1


@dataclass
class Timed:
    """A way's process and its turns: all of them, and the undisturbed (quiet) ones."""

    name: str
    worker: Worker
    turns: list[tuple[float, float]] = field(default_factory=list)  # seconds of (the plain step, this one)
    quiet: list[tuple[float, float]] = field(default_factory=list)

    def counted(self, rounds: int) -> list[tuple[float, float]]:
        """Return the quiet turns if there are enough of them, else all turns."""
        return self.quiet if len(self.quiet) >= rounds else self.turns


def main() -> int:
    asked = parse()
    device = torch.device(asked.device)
    failed = False
    for name in asked.nets:
        for draws in asked.draws:
            rows = bench(name, draws, device, asked)
            append(asked.out, rows)
            failed |= any(row["way"].startswith("ours") and not row["ms"] for row in rows)
    if asked.plot:
        plot(asked.out, asked.plot)
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--nets", nargs="+", choices=NETS, help="default: all for the device")
    parser.add_argument("--draws", nargs="+", type=int, help="K; default 1 8 32 on a GPU, 1 4 8 on a CPU")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all that apply to the device")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, help="timed steps per turn; default 10 on a GPU, 1 on a CPU")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="max seconds to wait for quiet turns, per network and K"
    )
    parser.add_argument(
        "--at-once", type=int, help="ways that get ready side by side; default 1 on a CPU, all on a GPU"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="smallest network, one K, three rounds")
    parser.add_argument("--out", type=Path, help="default bench/results/step_DEVICE.csv")
    parser.add_argument("--plot", type=Path, help="plot the newest rows of the CSV to this file")
    asked = parser.parse_args()
    on_gpu = asked.device == "cuda"
    if asked.clock == "cpu" and (on_gpu or asked.threads > 1):
        parser.error("--clock cpu needs --device cpu and --threads 1: waiting threads use CPU time too")
    nets, draws = (GPU_NETS, [1, 8, 32]) if on_gpu else (CPU_NETS, [1, 4, 8])
    if asked.quick:
        nets, draws, asked.rounds = list(nets)[:1] if on_gpu else list(nets)[-1:], draws[1:2], 3
    asked.nets, asked.draws = asked.nets or list(nets), asked.draws or draws
    asked.steps = asked.steps or (10 if on_gpu else 1)
    asked.at_once = asked.at_once if asked.at_once is not None else (0 if on_gpu else 1)
    other = {"ours"} if on_gpu else {way for way in WAYS if way.startswith("ours-")}
    asked.ways = ["plain"] + [
        w for w in asked.ways or WAYS if w != "plain" and (asked.ways or w not in other)
    ]
    asked.out = asked.out or ROOT / "bench" / "results" / f"step_{asked.device}.csv"
    return asked


def bench(net: str, draws: int, device: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one network and K; print the CSV's rows and return them."""
    bf16 = device.type == "cuda"
    works = [
        Work(way, NETS[net], draws, device.type, bf16, asked.threads, asked.steps, asked.clock)
        for way in asked.ways
    ]
    with ExitStack() as stack:
        ways = []
        for batch in batched(works, asked.at_once or len(works)):
            workers = [Worker(work) for work in batch]
            for work, worker in zip(batch, workers, strict=True):
                stack.callback(worker.close)
                worker.wait()
                ways.append(Timed(work.way, worker))
        take_turns(ways, asked)
    about = setting(device, bf16, asked) | shape(net, draws)
    print(f"\n{net}, {NETS[net].units} units, K={draws}, {about['precision']}, {about['device']}")
    rows = [figures(timed, NETS[net].units * draws, asked.rounds) | about for timed in ways]
    for row in rows:
        print(line(row), flush=True)
    return rows


def batched(works: list[Work], size: int) -> list[list[Work]]:
    """Return the works in runs of `size`."""
    return [works[first : first + size] for first in range(0, len(works), size)]


def take_turns(ways: list[Timed], asked: argparse.Namespace) -> None:
    """Run rounds of turns until every way that can run has enough quiet ones or patience runs out.

    A way whose process ends drops out and loses its turns; if the plain step's process ends, there are no more turns.
    """
    plain = ways[0].worker
    began, number = time.monotonic(), 0
    while waiting := [w for w in ways if w.worker.missing is None and len(w.quiet) < asked.rounds]:
        if number >= asked.rounds and time.monotonic() - began > asked.patience:
            break
        for timed in waiting:
            swapped = number % 2 == 1
            pair = [worker.turn() for worker in ((timed.worker, plain) if swapped else (plain, timed.worker))]
            base, own = reversed(pair) if swapped else pair
            if plain.missing is not None:
                return
            if base is None or own is None:
                continue
            timed.turns.append((base.seconds, own.seconds))
            if asked.clock == "cpu" or max(base.taken_by_others, own.taken_by_others) <= MAX_BY_OTHERS:
                timed.quiet.append(timed.turns[-1])
        number += 1


def figures(timed: Timed, samples: int, rounds: int) -> dict[str, Any]:
    """Return a way's columns of the CSV."""
    turns = [] if timed.worker.missing else timed.counted(rounds)
    notes = [timed.worker.missing or NOTES.get(timed.name, "")]
    if len(turns) < rounds and not timed.worker.missing:
        notes.append(f"the plain step ended after {len(turns)} of {rounds} turns")
    if turns is timed.turns and (disturbed := len(turns) - len(timed.quiet)):
        notes.append(f"busy machine: {disturbed} of {len(turns)} turns disturbed")
    note = "; ".join(filter(None, notes))
    row = dict.fromkeys(COLUMNS, "") | {"way": timed.name, "note": note, "rounds": len(turns)}
    peak = timed.worker.peak_mib
    row["peak_mib"] = "" if peak is None else f"{peak:.0f}"
    if not turns:
        return row
    mine, ratios = [own for _, own in turns], [own / plain for plain, own in turns]
    for key, values, scale, digits in (("ms", mine, 1e3, 2), ("ratio", ratios, 1.0, 3)):
        for column, value in zip((f"{key}_q1", key, f"{key}_q3"), quartiles(values), strict=True):
            row[column] = f"{value * scale:.{digits}f}"
    return row | {"images_per_s": f"{samples / statistics.median(mine):.0f}"}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return (first quartile, median, third quartile)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def setting(device: torch.device, bf16: bool, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the columns that describe the machine, the software and the command."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    about = {"date": date.today().isoformat(), "device": name, "threads": asked.threads, "clock": asked.clock}
    about |= {package: installed(package) for package in ("torch", "triton", "diffusers", "opacus")}
    return about | {"precision": "bf16" if bf16 else "fp32", "command": shlex.join(["python", *sys.argv])}


def shape(net: str, draws: int) -> dict[str, Any]:
    """Return the columns that describe the network and its microbatch."""
    weights = microbatch(NETS[net], 1, torch.device("cpu"), False).net.parameters()
    return {
        "net": net,
        "parameters": sum(p.numel() for p in weights),
        "size": NETS[net].size,
        "units": NETS[net].units,
        "draws": draws,
    }


def cpu_name() -> str:
    """Return the CPU's model name, or "CPU" if it is unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), "CPU")


def installed(package: str) -> str:
    """Return the version of `package`, or "absent"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def line(row: dict[str, Any]) -> str:
    """Return a row as it is printed."""
    if not row["ms"]:
        return f"  {row['way']:<17} {row['note']}"
    return (
        f"  {row['way']:<17} {row['ms']:>9} ms   {row['ratio']}x ({row['ratio_q1']} to {row['ratio_q3']})   "
        f"{row['images_per_s']:>7} images/s   {row['peak_mib'] or '-':>6} MiB   {row['note']}"
    )


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append the rows to the CSV, after a header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"  -> {path}")


if __name__ == "__main__":
    sys.exit(main())
