"""The PRIVATE artefact: where a run is, atomic and checked; resume takes the latest complete one.

A checkpoint is a folder `<phase number>-<phase>-<step>` of two files: `state.safetensors` (weights, optimiser,
EMA, central images) and `checkpoint.json` (where it was taken, the ledger's head at that moment, the hash of
the tensors, a MAC over all of it). It is written beside and renamed, so that a killed process or a full disk
leaves nothing that resume would take. One of the same step is renamed aside, to `<name>.<number>`, until the new one
has its name: resume takes that too, so that no moment is without a whole checkpoint. There is no RNG state to
save (design D1) and no pickle.
"""

import hashlib
import hmac
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curriculumdp.disk import sync
from curriculumdp.errors import UserError

STATE, FACTS = "state.safetensors", "checkpoint.json"
NAME = re.compile(r"[0-9]+-[a-z]+-[0-9]{7,}(\.[0-9]+)?")


class CheckpointError(UserError):
    """A checkpoint could not be written or does not belong here."""


@dataclass(frozen=True)
class Position:
    """Where a run is: `step` steps of phase number `phase` are done; `ledger_*` is the ledger's head."""

    phase: int
    phase_name: str
    step: int
    ledger_count: int
    ledger_mac: str

    @property
    def folder_name(self) -> str:
        return f"{self.phase}-{self.phase_name}-{self.step:07d}"


def save_checkpoint(
    folder: Path, position: Position, tensors: Mapping[str, Tensor], mac_key: bytes, keep: int
) -> Path:
    """The new checkpoint's path; older ones beyond `keep` are removed once it is safely on disk.

    Raises CheckpointError, with nothing of the new one left behind, if the disk is full or not writable.
    """
    target = folder / position.folder_name
    beside = folder / f".{target.name}.unfinished"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(folder.parent)
        _clear_unfinished(folder)
        beside.mkdir(mode=0o700)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, beside / STATE)
        facts = asdict(position) | {"sha256": _sha256(beside / STATE)}
        facts["mac"] = _mac(facts, mac_key)
        (beside / FACTS).write_text(json.dumps(facts, indent=1))
        for path in (beside / STATE, beside / FACTS, beside):
            sync(path)
        _swap(beside, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{target}: the checkpoint could not be written ({error}): free the disk and run the same command "
            "again; the one before it is whole"
        ) from error
    # One that is later than the newest is a damaged one that was passed over: it must not stand in for a whole one.
    done = [path for path in _complete(folder) if _place(path) <= _place(target)]
    kept = list({_place(path): path for path in done}.values())[-keep:]
    for old in (path for path in done if path not in kept):
        shutil.rmtree(old, ignore_errors=True)
    return target


def _swap(beside: Path, target: Path) -> None:
    """Give `beside` the name `target`; one of the same step, saved before, stays whole under a name of its own."""
    aside = None
    if target.exists():
        numbers = (target.with_name(f"{target.name}.{number}") for number in itertools.count(1))
        aside = next(path for path in numbers if not path.exists())
        target.rename(aside)
    try:
        beside.rename(target)
    except OSError:
        if aside is not None:
            aside.rename(target)
        raise
    sync(target.parent)


def load_latest(
    folder: Path, mac_key: bytes, warn: Callable[[str], None]
) -> tuple[Position, dict[str, Tensor]] | None:
    """The latest checkpoint whose hash and MAC hold, or None; one that is damaged is named and passed over.

    Passing over one is safe: the steps since the one before are replayed, with the same rows and noise, and
    the ledger charges a replayed step once.
    """
    for path in reversed(_complete(folder)):
        try:
            return _load(path, mac_key)
        except CheckpointError as error:
            warn(f"{error}; going back to the one before it")
    return None


def _load(path: Path, mac_key: bytes) -> tuple[Position, dict[str, Tensor]]:
    try:
        facts = json.loads((path / FACTS).read_text())
        mac = facts.pop("mac")
        if not hmac.compare_digest(mac, _mac(facts, mac_key)):
            raise CheckpointError(f"{path / FACTS}: the checkpoint's record was changed")
        if facts.pop("sha256") != _sha256(path / STATE):
            raise CheckpointError(f"{path / STATE}: the checkpoint is damaged or cut short")
        return Position(**facts), load_file(path / STATE)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error


def _complete(folder: Path) -> list[Path]:
    """The checkpoints' folders, the latest last; what else lies there is left alone."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: (_place(path), not _is_aside(path)))


def _place(path: Path) -> tuple[int, int]:
    """(phase, step) of a checkpoint's folder."""
    phase, *_, step = path.name.split("-")
    return int(phase), int(step.partition(".")[0])


def _is_aside(path: Path) -> bool:
    """Tell whether a later checkpoint of the same step was to take this one's name."""
    return "." in path.name


def _clear_unfinished(folder: Path) -> None:
    for path in folder.glob(".*.unfinished"):
        shutil.rmtree(path)


def _mac(facts: Mapping[str, object], key: bytes) -> str:
    body = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, b"checkpoint:" + body, hashlib.sha256).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(weights: Tensor) -> bytes:
    """SHA-256 of a flat fp32 buffer's bytes: what ranks compare at every checkpoint."""
    return hashlib.sha256(weights.detach().to("cpu", torch.float32).numpy().tobytes()).digest()
