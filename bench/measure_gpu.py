"""bench/measure_gpu.sh [--legs ...] [--data PATH] [--out DIR] [--carried DIR] [--rehearse]: what only a GPU can show.

In legs, the most telling first, each with its own limit, after which it is stopped and the next one begins:
    tests      the tests that need a GPU
    step       a microbatch by way (ours-graph, plain) at K = 32, 8 and 1       step_DEVICE.csv
    profile    where its time goes                                              profile.txt
    train      the recipe's seconds per step; see train_leg.sh                  runs_DEVICE.csv
    kernels    every kernel's time over its floor, in bf16                      kernels.csv
    compiled   the plain step under torch.compile                               step_DEVICE.csv
    opacus     Opacus and functorch                                             step_DEVICE.csv
The first second checks that every package, the GPU and the data are there; if not, one line says so, with exit status
2. Meanwhile, side by side, kernels are compiled into Triton's cache and the compiled plain step into torch's. Lines are
printed as they come, with the seconds since the leg's begin, and kept in measure.log. What fails does not stop the
rest; the exit status is then 1.

Training leaves its state in --carried (files of 15 MiB) and goes on from there: copy the folder along. The config's
data must be PUBLIC. --rehearse does everything with tiny networks on a CPU, and shows nothing but that it works.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/fashion_mnist_eps10.yaml"
NEEDED = (
    *("torch", "triton", "numpy", "scipy", "diffusers", "accelerate", "safetensors", "pydantic", "yaml"),
    *("kornia", "opacus", "dp_accounting", "cryptography", "PIL", "tqdm", "sklearn", "pytest"),
)
GRACE = 10  # seconds between SIGTERM and SIGKILL
WARMING = 8  # processes that compile kernels


@dataclass(frozen=True)
class Leg:
    """A command and the seconds that it has."""

    name: str
    seconds: float
    command: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--legs", nargs="+", help="the legs to run (default: all)")
    parser.add_argument("--config", default=CONFIG, help=f"the recipe (default: {CONFIG})")
    parser.add_argument("--data", help="where the recipe's data are (default: its data.path)")
    parser.add_argument("--train-seconds", type=int, default=70, help="seconds of training")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the results")
    parser.add_argument("--carried", type=Path, help="folder with the training's state; default OUT")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks on a CPU")
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    asked.carried = asked.carried or asked.out
    legs = rehearsal(asked) if asked.rehearse else legs_of(asked)
    if unknown := set(asked.legs or ()) - {leg.name for leg in legs}:
        parser.error(
            f"--legs: no leg {', '.join(sorted(unknown))}; choose from {', '.join(leg.name for leg in legs)}"
        )
    if (lacking := missing(asked)) is not None:
        parser.exit(2, f"error: {lacking}\n")
    asked.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the leg and the warming too
    failed = False
    with ExitStack() as stack:
        log = stack.enter_context((asked.out / "measure.log").open("a"))
        warming = warm_commands(asked)
        for number, command in enumerate(warming):
            stack.callback(end, started := start(command))
            threading.Thread(target=follow, args=(started, f"warm {number}", log), daemon=True).start()
        for leg in legs:
            if asked.legs is None or leg.name in asked.legs:
                failed |= not run(leg, log)
    return int(failed)


def missing(asked: argparse.Namespace) -> str | None:
    """Return what the legs lack, or None. Imports nothing heavy."""
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        return f"these packages are missing: {', '.join(absent)}"
    if not asked.rehearse and not driver_works():
        return "no CUDA GPU that torch can use"
    return None if asked.rehearse else missing_data(asked.config, asked.data)


def driver_works() -> bool:
    """Return whether NVIDIA's driver finds a GPU, without importing torch."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def missing_data(config: str, data: str | None) -> str | None:
    """Return that the config or its data are not there, or None."""
    import yaml

    if not (ROOT / config).is_file():
        return f"{config}: no such file"
    path = data or yaml.safe_load((ROOT / config).read_text())["data"].get("path")
    return None if path is None or (ROOT / path).exists() else f"data.path: no data at {path}"


def python(*arguments: str | Path) -> list[str]:
    """Return the command of a Python script or module."""
    return [sys.executable, "-u", *map(str, arguments)]


def step(asked: argparse.Namespace, draws: Sequence[int], *ways: str) -> list[str]:
    """Return the command that times ways of a step, which get ready side by side."""
    device, net, turns = ("cpu", "rehearsal", 1) if asked.rehearse else ("cuda", "28px-1.6M", 5)
    options = ["--device", device, "--nets", net, "--draws", *map(str, draws), "--at-once", "0"]
    options += ["--patience", "0", "--rounds", str(turns), "--steps", "3", "--threads", "1"]
    return python("bench/bench_step.py", *options, "--out", asked.out / f"step_{device}.csv", "--ways", *ways)


def train(asked: argparse.Namespace, config: str, seconds: int, *overrides: str) -> list[str]:
    """Return the command of the training leg."""
    places = [str(asked.carried), str(asked.out)]
    return ["bash", "bench/train_leg.sh", config, str(seconds), *places, *overrides]


def legs_of(asked: argparse.Namespace) -> list[Leg]:
    """Return the legs on a GPU."""
    kernels = ["--rounds", "9", "--dtypes", "bfloat16", "--out", asked.out / "kernels.csv"]
    others = ["opacus-ghost", "opacus-hooks", "functorch"]
    overrides = ["checkpoint.keep=1", *([f"data.path={asked.data}"] if asked.data else [])]
    side_by_side = ["-n", "6"] if find_spec("xdist") else []
    return [
        Leg(
            "tests",
            100,
            python("-m", "pytest", "-m", "gpu", "-v", "--no-header", *side_by_side, *gpu_tests()),
        ),
        Leg("step", 110, step(asked, (32, 8, 1), "plain", "ours-graph")),
        Leg(
            "profile", 45, python("bench/profile_step.py", "--steps", "2", "--out", asked.out / "profile.txt")
        ),
        Leg(
            "train",
            asked.train_seconds + 45,
            train(asked, asked.config, asked.train_seconds, *overrides),
        ),
        Leg("kernels", 60, python("bench/bench_kernels.py", *kernels)),
        Leg("compiled", 75, step(asked, (32,), "compiled")),
        Leg("opacus", 75, step(asked, (32,), *others)),
    ]


def gpu_tests() -> list[Path]:
    """Return the files with tests for a GPU: to collect the others would take half of the leg."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [file.relative_to(ROOT) for file in files if "@pytest.mark.gpu" in file.read_text()]


def rehearsal(asked: argparse.Namespace) -> list[Leg]:
    """Return the same legs with tiny work on a CPU, and time for one that is busy."""
    config = [
        "compute.device=cpu",
        "model.channels=[8]",
        "model.attention=[]",
        "private.steps=2",
        "warmup.steps=1",
    ]
    config += [
        "central.queries=1",
        "sampling.steps=2",
        "sampling.per_class=1",
        f"run_dir={asked.out / 'run'}",
    ]
    profile = ["--device", "cpu", "--net", "rehearsal", "--draws", "1", "--steps", "1", "--threads", "1"]
    commands = {
        "tests": python("-m", "pytest", "-m", "gpu", "tests/dpkernels/test_noise_step.py", "-v"),
        "step": step(asked, (1,), "plain", "ours"),
        "profile": python("bench/profile_step.py", *profile, "--out", asked.out / "profile.txt"),
        "train": train(asked, "configs/digits.yaml", 240, *config),
        "kernels": python("bench/bench_kernels.py", "--smoke", "--rows", "clip_sum"),
        "compiled": ["env", "TORCHDYNAMO_DISABLE=1", *step(asked, (1,), "compiled")],
        "opacus": step(asked, (1,), "opacus-ghost"),
    }
    return [Leg(name, 300, command) for name, command in commands.items()]


def warm_commands(asked: argparse.Namespace) -> list[list[str]]:
    """Return what compiles side by side, while the first legs run."""
    if asked.rehearse:
        return [
            python("bench/warm_kernels.py", "--arch", "90", "--nets", "--rows", "clip_sum", "--part", "0/99")
        ]
    wanted = {leg.name for leg in legs_of(asked)} if asked.legs is None else set(asked.legs)
    commands = [python("bench/warm_kernels.py", "--part", f"{part}/{WARMING}") for part in range(WARMING)]
    if "compiled" in wanted:
        once = ["--nets", "28px-1.6M", "--draws", "32", "--ways", "compiled", "--rounds", "1", "--steps", "1"]
        commands.append(python("bench/bench_step.py", *once, "--patience", "0", "--out", os.devnull))
    return commands if wanted - {"tests"} else []


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, so that it can be ended with all that it started."""
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)  # kernels are to be compiled
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def follow(process: subprocess.Popen[str], name: str, log: TextIO) -> None:
    """Print and keep each line of a process as it comes."""
    began = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        say(f"[{name} {time.monotonic() - began:5.1f} s] {line.rstrip()}", log)


def say(line: str, log: TextIO) -> None:
    """Print a line and keep it."""
    print(line, flush=True)
    if not log.closed:
        log.write(line + "\n")
        log.flush()


def end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run(leg: Leg, log: TextIO) -> bool:
    """Run a leg within its seconds; return whether it succeeded."""
    began = time.monotonic()
    process = start(leg.command)
    reader = threading.Thread(target=follow, args=(process, leg.name, log), daemon=True)
    reader.start()
    try:
        status = process.wait(leg.seconds)
        outcome = "done" if status == 0 else f"exit status {status}"
    except subprocess.TimeoutExpired:
        outcome = f"stopped, the leg has {leg.seconds:g} s"
    finally:
        end(process)
    reader.join(GRACE)
    say(f"== {leg.name}: {outcome}, {time.monotonic() - began:.0f} s", log)
    return outcome == "done"


if __name__ == "__main__":
    sys.exit(main())
