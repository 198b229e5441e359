"""python bench/warm_kernels.py [--part I/N] [--nets ...] [--rows ...] [--arch 90]: compile kernels into Triton's cache.

Compiles what a microbatch of the networks launches, and the catalogue's main shapes in bf16, without running anything:
the step runs on tensors without memory, and each launch is compiled with the arguments that a GPU would be given. All
processes find the same launches; with --part I/N one compiles each N-th of them, so that N processes side by side fill
the cache. --arch compiles for an architecture where there is no GPU. Run it in a process without TRITON_INTERPRET.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from bench.step_nets import GPU_NETS, NETS, Microbatch, microbatch  # noqa: E402
from curriculumdp.clipping.layer_plan import layer_shapes, plan_layers  # noqa: E402
from curriculumdp.clipping.planned_engine import planned_engine  # noqa: E402
from curriculumdp.curriculum.engine import EXPLAINED_MEMORY, KEPT_SHARE  # noqa: E402
from dpkernels.catalog import CATALOG  # noqa: E402
from dpkernels.device import always_triton  # noqa: E402
from tests.dpkernels.compile_catalog import NoGpu  # noqa: E402

Launch = Callable[[], Any]


class Address:
    """A pointer argument: its type and the alignment of its address are all that a compilation depends on."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        self._offset = like.storage_offset() * like.element_size()

    def data_ptr(self) -> int:
        """Return an address with the alignment that the tensor has in an allocation of its own."""
        return self._offset


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="0/1", help="I/N: every N-th launch, from I on")
    parser.add_argument("--nets", nargs="*", choices=NETS, default=list(GPU_NETS)[:1])
    parser.add_argument("--draws", nargs="+", type=int, default=[32, 8, 1], help="K: kernels depend on it")
    parser.add_argument("--rows", nargs="*", choices=CATALOG, default=list(CATALOG))
    parser.add_argument("--arch", type=int, help="compile for this architecture, such as 90, without a GPU")
    asked = parser.parse_args()
    if asked.arch is not None:
        driver.set_active(NoGpu(asked.arch))
    part, parts = map(int, asked.part.split("/"))
    began, launches = time.monotonic(), {}
    with launches_kept(launches):
        for net in asked.nets:
            for draws in asked.draws:
                step_without_memory(net, draws)
        for row in asked.rows:
            catalogue_row(row)
    mine = list(launches.values())[part::parts]
    failed = 0
    for launch in mine:
        try:
            launch()
        except Exception as error:  # whatever a compiler raises must not stop the others
            failed += 1
            print(f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[:1]}", flush=True)
    seconds = time.monotonic() - began
    print(
        f"part {part} of {parts}: {len(mine) - failed} of {len(launches)} launches in {seconds:.1f} s",
        flush=True,
    )
    return int(failed > 0)


@contextmanager
def launches_kept(launches: dict[str, Launch]) -> Iterator[None]:
    """Within it, keep in `launches` how to compile each different launch, and launch nothing."""
    compiled = JITFunction.run

    def keep(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        addresses = _addresses(args)
        key = repr((kernel.fn.__module__, kernel.fn.__name__, _facts(addresses), options))
        launches.setdefault(key, lambda: compiled(kernel, *addresses, grid=(1,), warmup=True, **options))

    with patch.object(JITFunction, "run", keep), always_triton():
        yield


def _addresses(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Address(value)
    if isinstance(value, tuple):
        parts = [_addresses(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _facts(value: Any) -> Any:
    """Return what tells two arguments apart for the compiler, and a little more."""
    if isinstance(value, Address):
        return str(value.dtype), value.data_ptr() % 16
    return tuple(_facts(part) for part in value) if isinstance(value, tuple) else value


def step_without_memory(name: str, draws: int) -> None:
    """Run the step of `ours-graph` on tensors without memory, in bf16 and channels_last, as planned for an H100."""
    net = NETS[name]
    module = microbatch(net, 1, torch.device("cpu"), True).net
    samples = net.units * draws
    with FakeTensorMode():
        for layer in module.modules():
            for key, weight in list(layer.named_parameters(recurse=False)):
                layer._parameters[key] = nn.Parameter(torch.empty_strided(weight.shape, weight.stride()))
        images = torch.empty(samples, net.image_channels, net.size, net.size)
        images = images.contiguous(memory_format=torch.channels_last)
        labels, sigma = torch.empty(samples, dtype=torch.int64), torch.empty(samples)
        batch = Microbatch(module, net.units, draws, True, images, labels, sigma, torch.empty_like(images))
        with torch.no_grad():
            shapes = layer_shapes(module, batch.losses)
        plan = plan_layers(shapes, net.units, draws, int(KEPT_SHARE * EXPLAINED_MEMORY), 2)
        engine = planned_engine(module, net.units, draws, plan, torch.bfloat16, channels_last=True)
        engine.backward(batch.unit_losses)
        total = torch.zeros(engine.total, dtype=torch.int64)
        engine.add_clipped_grads(total, 1.0, torch.ones(net.units, dtype=torch.bool))


def catalogue_row(name: str) -> None:
    """Launch a row's main shapes in bf16, or in its only precision, on tensors without memory."""
    row = CATALOG[name]
    dtype = torch.bfloat16 if torch.bfloat16 in row.dtypes else row.dtypes[0]
    for shape in row.main:
        row.run(**row.inputs(shape, dtype, "meta"))


if __name__ == "__main__":
    sys.exit(main())
