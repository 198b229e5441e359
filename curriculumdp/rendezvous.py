"""Before the processes of a run join: whether a launcher started them as it should, and whether all of them came.

torch would wait for a missing process for as long as for a rank that works, hours, without a word.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # torch lists no exports

from curriculumdp.errors import UserError

JOIN_MINUTES = 10.0
SAY_EVERY = 30.0  # seconds
LOOK_EVERY = 0.2
OTHER_LAUNCH = "launch with --config_file and a file from configs/accelerate/, or with torchrun"
# What a launcher sets for each process that it starts.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What starts several processes without telling each its place in the way that torch reads.
UNTOLD = ("SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Accelerate's ways to train that would wrap the model or replace the optimiser.
WRAPPERS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}


class WorldError(UserError):
    """The processes are not the ones the config asks for, they disagree, or one of them is gone."""


def require_plain_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Raise WorldError if Accelerate was told, perhaps by its user's default config, to train in a way of its own."""
    for name, what in WRAPPERS.items():
        if environment.get(name, "false").lower() in ("true", "1", "yes"):
            raise WorldError(
                f"Accelerate is configured for {what}, which this program does not use: {OTHER_LAUNCH} (a config of "
                f"your own, such as `accelerate config` writes, otherwise holds), or unset {name}"
            )


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes the launcher started; 1 without one. Raises WorldError if it is not clear."""
    given = {name: environment[name] for name in PLACE[:3] if name in environment}
    if not given or given in ({"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        _require_told(environment)
        return 1
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    missing = [name for name in PLACE if not environment.get(name)]
    if missing:
        raise WorldError(
            f"the environment has {said} but not {', '.join(missing)}: for one process unset them; for several, "
            f"{OTHER_LAUNCH}"
        )
    numbers = {name: _number(name, environment[name]) for name in PLACE if name != "MASTER_ADDR"}
    if not 0 <= numbers["RANK"] < numbers["WORLD_SIZE"]:
        raise WorldError(
            f"the environment has {said}: RANK must be below WORLD_SIZE; unset both, or {OTHER_LAUNCH}"
        )
    return numbers["WORLD_SIZE"]


def _require_told(environment: Mapping[str, str]) -> None:
    for name in UNTOLD:
        if _number(name, environment.get(name, "1")) > 1:
            raise WorldError(
                f"{environment[name]} processes were started ({name}), and each would train alone: start one task "
                f"per machine, and in it {OTHER_LAUNCH} (see configs/slurm/requeue.sbatch)"
            )


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise WorldError(
            f"the environment has {name}={value!r}, which is no number: unset it, or {OTHER_LAUNCH}"
        )
    return int(value)


def await_processes(size: int, minutes: float) -> Store:
    """Wait until all `size` processes are here, and return the store at which they met, which rank 0 may serve.

    What is waited for is said on stderr every half minute. Raises WorldError after `minutes`.
    """
    waiting = _Waiting(size, minutes)
    store = _meeting_place(size, waiting)
    attempt = PrefixStore(f"here/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    attempt.add("count", 1)
    while (here := attempt.add("count", 0)) < size:
        waiting.go_on(f"{here} of {size} processes are here")
    return store


def _meeting_place(size: int, waiting: "_Waiting") -> TCPStore:
    """Return the store at MASTER_ADDR and MASTER_PORT; rank 0 serves it unless the launcher does."""
    rank, address, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not serves and not _answers(address, port):
        waiting.go_on(f"the main process at {address}:{port} does not answer yet")
    try:
        return TCPStore(
            address,
            port,
            size,
            is_master=serves,
            timeout=timedelta(seconds=SAY_EVERY),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        raise WorldError(
            f"the processes cannot meet at {address}:{port} ({' '.join(str(error).split())[:200]}): if another run "
            "uses that port, choose another with --main_process_port"
        ) from error


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=SAY_EVERY / 6).close()
    except (OSError, OverflowError):
        return False
    return True


class _Waiting:
    """The patience of one process, which says what it waits for."""

    def __init__(self, size: int, minutes: float) -> None:
        self.size, self.minutes = size, minutes
        self.began = self.said = time.monotonic()

    def go_on(self, what: str) -> None:
        """Wait a moment; say `what` if it is time to. Raises WorldError at the end of the patience."""
        now = time.monotonic()
        if now - self.began > 60 * self.minutes:
            raise WorldError(
                f"{what} after {self.minutes:g} minutes: start all {self.size} with the same command on machines that "
                "reach each other, or launch fewer; compute.join_minutes sets how long to wait"
            )
        if now - self.said >= SAY_EVERY:
            self.said = now
            print(f"waiting: {what} ({now - self.began:.0f} s)", file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY)
