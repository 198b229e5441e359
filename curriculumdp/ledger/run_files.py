"""Paths of a run's ledger, its key and its secret in the private folder, and what a missing one means.

They are created in this order, so that a creation killed at any point can be told from a file that was removed:
the secret, the ledger (atomically), the ledger's key.
"""

import hashlib
import hmac
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculumdp.disk import sync, unfinished
from curriculumdp.ledger.chain import Chain, LedgerError, canonical
from curriculumdp.privacy.secret import KEY_BYTES, RunSecret, SecretError, read_private, write_private

LEDGER, KEY, SECRET, CHECKPOINTS = "ledger.jsonl", "ledger.key", "secret", "checkpoints"
KIND = "run ledger"
OR_START_NEW = "or start a new run in another folder"


def data_mac(key: bytes, *arrays: NDArray[Any]) -> str:
    """Return the HMAC-SHA256 (hex) of the arrays' types, shapes and values. It reveals nothing without the key."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        mac.update(canonical([little.dtype.str, list(array.shape)]) + b"\n")
        mac.update(little.reshape(-1).view(np.uint8).data)
    return mac.hexdigest()


def subkey(key: bytes, purpose: str) -> bytes:
    """Derive the key for one purpose from a ledger's key."""
    return hmac.new(key, purpose.encode(), hashlib.sha256).digest()


def open_chain(folder: Path, key: bytes, to_append: bool) -> Chain:
    """Open and check the chain in a run's private folder, under the ledger's key."""
    return Chain.open(folder / LEDGER, subkey(key, "chain"), KIND, to_append)


def ledger_is_missing(folder: Path) -> bool:
    """Return whether this private folder has no ledger yet, removing what a killed creation left behind.

    Raises LedgerError if there is none but a key or a checkpoint shows that there was one.
    """
    if (folder / LEDGER).exists():
        return False
    checkpoints = folder / CHECKPOINTS
    for trace in (folder / KEY, *(checkpoints.iterdir() if checkpoints.is_dir() else ())):
        if trace.exists() and not trace.name.startswith("."):
            raise LedgerError(
                f"{folder / LEDGER}: the ledger is missing, but {trace} shows that there was one: "
                f"restore it, {OR_START_NEW}"
            )
    unfinished(folder / LEDGER).unlink(missing_ok=True)
    (folder / SECRET).unlink(missing_ok=True)  # without a ledger nothing was ever drawn from it
    return True


def forget_unbegun(folder: Path) -> None:
    """Remove a ledger that holds only the plan, from which nothing was drawn, so that another plan may use its folder.

    The order is such that a kill at any point leaves what a killed creation leaves.
    """
    for name in (KEY, LEDGER, SECRET):
        (folder / name).unlink(missing_ok=True)
        sync(folder)


def read_key(path: Path) -> bytes:
    """Return the ledger's key. Raises LedgerError if it is missing, truncated, or readable by others."""
    try:
        key = read_private(path, "the ledger's key")
    except SecretError as error:
        raise LedgerError(str(error)) from error
    if len(key) != KEY_BYTES:
        raise LedgerError(f"{path}: the ledger's key is truncated or damaged: restore it, {OR_START_NEW}")
    return key


def key_is_cut(folder: Path) -> bool:
    """Return whether the ledger's key is missing or truncated, as a creation killed at its very end leaves it."""
    path = folder / KEY
    return not path.exists() or path.stat().st_size != KEY_BYTES


def write_key(path: Path, key: bytes) -> None:
    """Save the ledger's key in a new file of mode 0600. Raises LedgerError if that fails."""
    try:
        write_private(path, key, "the ledger's key")
    except SecretError as error:
        raise LedgerError(str(error)) from error


def key_of_begun(folder: Path, secret: RunSecret) -> bytes:
    """Return the key of an existing ledger, deriving it again if a killed creation did not write it."""
    path = folder / KEY
    if not key_is_cut(folder):
        return read_key(path)
    key = secret.key("ledger")
    chain = open_chain(folder, key, to_append=False)
    chain.close()
    if len(chain.macs) > 1:
        raise LedgerError(f"{path}: the ledger's key is missing or truncated: restore it, {OR_START_NEW}")
    path.unlink(missing_ok=True)
    write_key(path, key)
    return key
