"""python bench/profile_step.py [--net NET] [--draws K] [--way WAY] [--steps N]: profile a training step.

By default, the step that training runs on this device: planned and captured on a GPU, in torch on a CPU. Writes
torch.profiler's table of the most expensive operations and kernels to bench/results/profile_DEVICE_WAY.txt. The
profiler slows a step down: bench_step.py times complete steps.
"""

import argparse
import shlex
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from bench.bench_step import cpu_name  # noqa: E402
from bench.step_nets import CPU_NETS, GPU_NETS, NETS, microbatch  # noqa: E402
from bench.step_ways import WAYS, prepare  # noqa: E402

FIRST_STEPS = 3
ROWS = 20


def main() -> int:
    asked = parse()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    on_gpu = device.type == "cuda"
    prepare(asked.way, device)
    way = WAYS[asked.way](microbatch(NETS[asked.net], asked.draws, device, on_gpu))
    for _ in range(FIRST_STEPS):
        way.step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(asked.steps):
            way.step()
        if on_gpu:
            torch.cuda.synchronize()
    name = torch.cuda.get_device_name() if on_gpu else cpu_name()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    text = (
        f"{asked.net}, K={asked.draws}, way {asked.way}, {asked.steps} steps, {'bf16' if on_gpu else 'fp32'}; {name}, "
        f"torch {torch.__version__}, {date.today().isoformat()}\n"
        f"{shlex.join(['python', *sys.argv])}\n\n"
        f"{profiled.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)}\n"
    )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(text)
    print(f"{text}-> {asked.out}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--net", choices=NETS, help="default: the first for the device")
    parser.add_argument("--draws", type=int, help="K; default 32 on a GPU, 4 on a CPU")
    parser.add_argument("--way", choices=WAYS, help="default: ours-graph on a GPU, ours on a CPU")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="default bench/results/profile_DEVICE_WAY.txt")
    asked = parser.parse_args()
    on_gpu = asked.device == "cuda"
    asked.net = asked.net or next(iter(GPU_NETS if on_gpu else CPU_NETS))
    asked.draws = asked.draws or (32 if on_gpu else 4)
    asked.way = asked.way or ("ours-graph" if on_gpu else "ours")
    asked.out = asked.out or ROOT / "bench" / "results" / f"profile_{asked.device}_{asked.way}.txt"
    return asked


if __name__ == "__main__":
    sys.exit(main())
