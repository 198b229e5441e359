"""Checkpoint folders: written under a free name, swapped in atomically, authenticated when read. PRIVATE.

A checkpoint is a folder `<phase number>-<phase>-<step>` of two files: `state.safetensors` (weights, optimiser,
EMA, central images) and `checkpoint.json` (its position, the ledger's head at that moment, the hash of the
tensors, a MAC over all of these). It is written under a temporary name and renamed, so a killed process or a full
disk leaves nothing that resume would load. An older checkpoint of the same step is first renamed to
`<name>.<number>`, which resume also accepts, so a complete checkpoint exists at every moment. There is no RNG state
to save (design D1) and no pickle.
"""

import hashlib
import hmac
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curriculumdp.disk import sync
from curriculumdp.errors import UserError

STATE, FACTS = "state.safetensors", "checkpoint.json"
NAME = re.compile(r"[0-9]+-[a-z]+-[0-9]{7,}(\.[0-9]+)?")


class CheckpointError(UserError):
    """A checkpoint that cannot be written, is damaged, or is not this run's."""


@dataclass(frozen=True)
class Position:
    """How far a run has come: `step` steps of phase number `phase` are done; `ledger_*` is the ledger's head."""

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
    """Write a checkpoint to disk, then remove the older ones beyond `keep`; return its path.

    Raises CheckpointError if the disk is full or not writable, leaving nothing of the new checkpoint behind.
    """
    target = folder / position.folder_name
    unfinished = folder / f".{target.name}.unfinished"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(folder.parent)
        _clear_unfinished(folder)
        unfinished.mkdir(mode=0o700)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, unfinished / STATE)
        facts = asdict(position) | {"sha256": _sha256(unfinished / STATE)}
        facts["mac"] = _mac(facts, mac_key)
        (unfinished / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        for path in (unfinished / STATE, unfinished / FACTS, unfinished):
            sync(path)
        _swap(unfinished, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"{target}: the checkpoint cannot be written ({error}): free disk space and run the same command again; "
            "the previous checkpoint is intact"
        ) from error
    # One later than the newest is damaged and was skipped on resume: it must not count as one to keep.
    done = [path for path in _complete(folder) if _position(path) <= _position(target)]
    kept = list({_position(path): path for path in done}.values())[-keep:]
    for old in (path for path in done if path not in kept):
        shutil.rmtree(old, ignore_errors=True)
    return target


def _swap(unfinished: Path, target: Path) -> None:
    """Rename `unfinished` to `target`; keep an older checkpoint of the same step under a numbered name."""
    aside = None
    if target.exists():
        numbers = (target.with_name(f"{target.name}.{number}") for number in itertools.count(1))
        aside = next(path for path in numbers if not path.exists())
        target.rename(aside)
    try:
        unfinished.rename(target)
    except OSError:
        if aside is not None:
            aside.rename(target)
        raise
    sync(target.parent)


def load_latest(
    folder: Path, mac_key: bytes, warn: Callable[[str], None]
) -> tuple[Position, dict[str, Tensor]] | None:
    """Return the latest checkpoint whose hash and MAC are valid, or None; warn about damaged ones and skip them.

    Skipping is safe: the steps since the previous checkpoint are replayed with the same rows and noise, and the
    ledger charges a replayed step once.
    """
    for path in reversed(_complete(folder)):
        try:
            return _load(path, mac_key)
        except CheckpointError as error:
            warn(f"{error}; falling back to the previous checkpoint")
    return None


def authentic_positions(folder: Path, mac_key: bytes) -> list[Position]:
    """Return the positions of all checkpoints with an authentic record, whether or not their tensors are intact."""
    found = []
    for path in _complete(folder):
        with suppress(CheckpointError):
            facts = _record(path, mac_key)
            facts.pop("sha256")
            found.append(Position(**facts))
    return found


def _record(path: Path, mac_key: bytes) -> dict[str, Any]:
    """Return a checkpoint's record without its MAC, which has been checked; raise CheckpointError."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        mac = facts.pop("mac")
        if not hmac.compare_digest(mac, _mac(facts, mac_key)):
            raise CheckpointError(f"{path / FACTS}: the checkpoint's record was modified")
        return dict(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error


def _load(path: Path, mac_key: bytes) -> tuple[Position, dict[str, Tensor]]:
    facts = _record(path, mac_key)
    try:
        if facts.pop("sha256") != _sha256(path / STATE):
            raise CheckpointError(f"{path / STATE}: the checkpoint is damaged or truncated")
        return Position(**facts), load_file(path / STATE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error


def _complete(folder: Path) -> list[Path]:
    """Return the paths of the checkpoints, oldest first; ignore anything else in the folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: (_position(path), not _is_aside(path)))


def _position(path: Path) -> tuple[int, int]:
    """Return (phase, step) from the name of a checkpoint's folder."""
    phase, *_, step = path.name.split("-")
    return int(phase), int(step.partition(".")[0])


def _is_aside(path: Path) -> bool:
    """Tell whether this checkpoint was renamed to make way for a newer one of the same step."""
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
    """Return the SHA-256 of a flat fp32 buffer's bytes, which ranks compare at every checkpoint."""
    return hashlib.sha256(weights.detach().to("cpu", torch.float32).numpy().tobytes()).digest()
