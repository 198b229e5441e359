"""Ranks and devices over Accelerate: one sum, one voice, and no world but the one asked for.

A rank only decides who does a microbatch (design D2); nothing that leaves the run depends on how many there
are. Accelerate launches and places; it wraps neither the model nor the loader (a Poisson loader handed to
`prepare()` is dealt out with doubled batches, and DDP averages what must be summed).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor

from curriculumdp.errors import UserError

# Rank 0 trains the warm-up alone while the others wait in one collective call.
PATIENCE = timedelta(hours=12)


class WorldError(UserError):
    """The processes that were started are not the ones asked for, or they disagree."""


class StoppedByMain(UserError):
    """Rank 0 refused to go on and said why; the other ranks stop quietly."""


@dataclass(frozen=True)
class World:
    """The processes of one run; rank 0 alone holds the ledger and writes files."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def print(self, text: str) -> None:
        """One line on rank 0's standard output."""
        if self.is_main:
            print(text, flush=True)

    def sum_(self, total: Tensor) -> None:
        """Adds an int64 buffer over the ranks, in place. Integers are exact, so no order can show."""
        if total.dtype != torch.int64:
            raise WorldError(f"only int64 sums are exact over ranks, not {total.dtype}")
        if self.size > 1:
            dist.all_reduce(total, op=dist.ReduceOp.SUM)

    def gather_figures_(self, table: Tensor) -> None:
        """Adds float64 tables in place of which each cell is one rank's and 0 on all others: no order can show.

        For PRIVATE figures alone; what is released is summed in int64.
        """
        if table.dtype != torch.float64:
            raise WorldError(f"figures are gathered in float64, not in {table.dtype}")
        if self.size > 1 and table.numel():
            dist.all_reduce(table, op=dist.ReduceOp.SUM)

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrites `tensor` with rank 0's."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)

    def gather(self, mine: bytes) -> list[bytes]:
        """Every rank's `mine`, in the order of ranks; all must have one length, a multiple of 8."""
        table = torch.zeros(self.size, len(mine) // 8, dtype=torch.int64)
        table[self.rank] = torch.frombuffer(bytearray(mine), dtype=torch.int64)
        table = table.to(self.device)
        self.sum_(table)
        return [row.numpy().tobytes() for row in table.cpu()]

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        seen = torch.tensor([int(flag)], dtype=torch.int64, device=self.device)
        self.sum_(seen)
        return bool(seen.item())

    def from_main(self, make: Callable[[], bytes | None]) -> bytes:
        """What `make` returns on rank 0, on every rank; if it raises there, every rank stops."""
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
        finally:  # it may be a secret, and a traceback may show the names of its frames
            answer = b""
            body.zero_()

    def require_equal(self, what: str, mine: bytes) -> None:
        """Raises on every rank if one rank's `mine` is not rank 0's."""
        if self.any(self.from_main(lambda: mine) != mine):
            raise WorldError(
                f"the processes disagree about {what}: start all with the same command, and see to it that all "
                "see the same files"
            )


@contextmanager
def open_world(device: str, processes: int | None) -> Iterator[World]:
    """The world that the launcher made, on `device` ("auto", "cpu", "cuda"), for the length of a `with`.

    `accelerate launch` can start one process where two were asked for, or two that each believe to be alone;
    both raise a WorldError here. The group ends with the `with`, also where it is refused: its threads, left
    running while Python shuts down, can abort a process whose work is done.
    """
    try:
        yield _join_world(device, processes)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_world(device: str, processes: int | None) -> World:
    if device == "cuda" and not torch.cuda.is_available():
        raise WorldError("compute.device is 'cuda' but torch sees no CUDA device: set compute.device=auto")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise WorldError(
            f"the launcher started {launched} processes but this one is in a world of {accelerator.num_processes}: "
            "launch with configs/accelerate/two_cpu_processes.yaml or torchrun"
        )
    if processes is not None and launched != processes:
        raise WorldError(
            f"compute.processes asks for {processes} but {launched} started: launch with "
            f"`accelerate launch --num_processes {processes}` and a config file from configs/accelerate/ "
            "(`--cpu` alone starts one), or change compute.processes"
        )
    return World(accelerator.process_index, launched, accelerator.device)


def one_process() -> World:
    """A world of one CPU process, for tests and for commands that train nothing."""
    return World(0, 1, torch.device("cpu"))
