"""Ranks and devices over Accelerate: exact sums, output from rank 0 alone, and a check of the number of processes.

Ranks only divide up the microbatches (design D2); nothing that leaves the run depends on how many there are.
Accelerate starts the processes and picks their devices; it wraps neither the model nor the loader (`prepare()`
doubles a Poisson loader's batches, and DDP averages what must be summed).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor

from curriculumdp.errors import StoppedByMain
from curriculumdp.rendezvous import (
    JOIN_MINUTES,
    OTHER_LAUNCH,
    WorldError,
    await_processes,
    launched_processes,
    require_plain_launch,
)

__all__ = ["StoppedByMain", "World", "WorldError", "one_process", "open_world"]

# Rank 0 trains the warm-up alone while the others wait in one collective call.
PATIENCE = timedelta(hours=12)
# A rank whose peers end on the same signal as it does ends on the signal, not on their silence.
GRACE = 1.0


@dataclass(frozen=True)
class World:
    """The processes of one run; only rank 0 holds the ledger and writes files."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def print(self, text: str) -> None:
        """Print `text` to standard output on rank 0."""
        if self.is_main:
            print(text, flush=True)

    def sum_(self, total: Tensor) -> None:
        """Sum an int64 buffer over the ranks, in place. Integer sums are exact, so the order cannot show."""
        if total.dtype != torch.int64:
            raise WorldError(f"only int64 sums are exact over ranks: this buffer is {total.dtype}")
        if self.size > 1:
            with _answering_peers():
                dist.all_reduce(total, op=dist.ReduceOp.SUM)

    def gather_figures_(self, table: Tensor) -> None:
        """Sum a float64 table over the ranks, in place; each cell is one rank's, so the order cannot show.

        For PRIVATE metrics only; anything that is released is summed in int64.
        """
        if table.dtype != torch.float64:
            raise WorldError(f"metrics are gathered in float64: this table is {table.dtype}")
        if self.size > 1 and table.numel():
            with _answering_peers():
                dist.all_reduce(table, op=dist.ReduceOp.SUM)

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite `tensor` with rank 0's."""
        if self.size > 1:
            with _answering_peers():
                dist.broadcast(tensor, src=0)

    def gather(self, mine: bytes) -> list[bytes]:
        """Return every rank's `mine`, in rank order; all must have the same length, a multiple of 8 bytes."""
        table = torch.zeros(self.size, len(mine) // 8, dtype=torch.int64)
        table[self.rank] = torch.frombuffer(bytearray(mine), dtype=torch.int64)
        table = table.to(self.device)
        self.sum_(table)
        return [row.numpy().tobytes() for row in table.cpu()]

    def any(self, flag: bool) -> bool:
        """Return True on every rank if `flag` is true on any of them."""
        seen = torch.tensor([int(flag)], dtype=torch.int64, device=self.device)
        self.sum_(seen)
        return bool(seen.item())

    def from_main(self, make: Callable[[], bytes | None]) -> bytes:
        """Call `make` on rank 0 and return its bytes (b"" for None) on every rank.

        If it raises, rank 0 raises the same error and every other rank raises StoppedByMain.
        """
        answer, error = b"", None
        if self.is_main:
            try:
                answer = make() or b""
            except Exception as raised:
                error = raised
        head = torch.tensor([len(answer), int(error is not None)], dtype=torch.int64, device=self.device)
        body = torch.zeros(0, dtype=torch.uint8)
        try:
            self.broadcast_(head)
            if error is not None:
                raise error
            if head[1]:
                raise StoppedByMain("rank 0 stopped")
            body = torch.zeros(int(head[0]), dtype=torch.uint8, device=self.device)
            if answer:
                body.copy_(torch.frombuffer(bytearray(answer), dtype=torch.uint8))
            self.broadcast_(body)
            return bytes(body.cpu().numpy().tobytes())
        finally:  # the bytes may be a secret, and a traceback can expose local variables
            answer = b""
            body.zero_()

    def require_equal(self, what: str, mine: bytes) -> None:
        """Raise WorldError on every rank if any rank's `mine` differs from rank 0's; `what` names it in the message."""
        if self.any(self.from_main(lambda: mine) != mine):
            raise WorldError(
                f"the processes disagree about {what}: start them all with the same command, and make sure that they "
                "all read the same files"
            )


@contextmanager
def open_world(device: str, processes: int | None, minutes: float = JOIN_MINUTES) -> Iterator[World]:
    """Join the processes that the launcher started, on `device` ("auto", "cpu", "cuda"), for a `with` block.

    A process that has not come after `minutes` is given up: WorldError.

    `accelerate launch` can start one process where two were requested, or two that each believe they are alone:
    both raise WorldError. The process group is destroyed on leaving the block, even after an error: its threads, if
    left running while Python shuts down, can abort a process whose work is done.
    """
    try:
        yield _join_world(device, processes, minutes)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_world(device: str, processes: int | None, minutes: float) -> World:
    if device == "cuda" and not torch.cuda.is_available():
        raise WorldError("compute.device is 'cuda', but torch finds no CUDA device: set compute.device=auto")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    require_plain_launch()
    launched = launched_processes()
    if processes is not None and launched != processes:
        raise WorldError(
            f"compute.processes is {processes}, but {launched} started: launch with "
            f"`accelerate launch --num_processes {processes}` and a config file from configs/accelerate/ "
            "(`--cpu` alone starts one), or change compute.processes"
        )
    store = await_processes(launched, minutes) if launched > 1 else None
    accelerator = _accelerator(on_cpu)
    del store  # rank 0's serves Accelerate's own rendezvous
    if accelerator.num_processes != launched:
        raise WorldError(
            f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes}: launch with "
            "configs/accelerate/two_cpu_processes.yaml or torchrun"
        )
    return World(accelerator.process_index, launched, accelerator.device)


def _accelerator(on_cpu: bool) -> Accelerator:
    """Return the Accelerator of this process; compute.precision, not its own default, sets the precision."""
    try:
        return Accelerator(
            cpu=on_cpu,
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ValueError, RuntimeError, ImportError, NotImplementedError, KeyError) as error:
        raise WorldError(
            f"Accelerate cannot start here ({' '.join(str(error).split())[:300]}): {OTHER_LAUNCH}"
        ) from error


@contextmanager
def _answering_peers() -> Iterator[None]:
    """Turn the error of a collective call whose peer is gone into a WorldError."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(GRACE)
        raise WorldError(
            f"another process of this run is gone ({' '.join(str(error).split())[:200]}): its own last line says why; "
            "nothing is lost; run the same command again"
        ) from error


def one_process() -> World:
    """Return a world of one CPU process, for tests and for commands that train nothing."""
    return World(0, 1, torch.device("cpu"))
