"""Where a run's ledger, its key and its secret lie in the private folder; what it means if one is missing.

They are made in this order, so that a creation killed anywhere can be told from a file that was taken away:
the secret, the ledger (whole or not at all), the ledger's key.
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
BEGIN_ANEW = "or begin a new run in another folder"


def data_mac(key: bytes, *arrays: NDArray[Any]) -> str:
    """HMAC-SHA256 (hex) of the arrays' types, shapes and values: tells nothing to those without the key."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        mac.update(canonical([little.dtype.str, list(array.shape)]) + b"\n")
        mac.update(little.reshape(-1).view(np.uint8).data)
    return mac.hexdigest()


def subkey(key: bytes, purpose: str) -> bytes:
    """The key of one purpose that a ledger's key stands for."""
    return hmac.new(key, purpose.encode(), hashlib.sha256).digest()


def open_chain(folder: Path, key: bytes, to_append: bool) -> Chain:
    """The checked chain of a run's private folder, under the ledger's key."""
    return Chain.open(folder / LEDGER, subkey(key, "chain"), KIND, to_append)


def ledger_is_missing(folder: Path) -> bool:
    """True if no ledger has begun in this private folder; clears what a creation killed half-way left.

    Raises LedgerError if there is none, but a key or a checkpoint tells that there was one.
    """
    if (folder / LEDGER).exists():
        return False
    checkpoints = folder / CHECKPOINTS
    for trace in (folder / KEY, *(checkpoints.iterdir() if checkpoints.is_dir() else ())):
        if trace.exists() and not trace.name.startswith("."):
            raise LedgerError(
                f"{folder / LEDGER}: the ledger is missing, but {trace} tells that there was one: "
                f"bring it back, {BEGIN_ANEW}"
            )
    unfinished(folder / LEDGER).unlink(missing_ok=True)
    (folder / SECRET).unlink(missing_ok=True)  # without a ledger nothing was ever drawn from it
    return True


def forget_unbegun(folder: Path) -> None:
    """Removes a ledger of the plan alone, from which nothing was drawn: another plan may begin in its folder.

    In an order that, killed anywhere, leaves what a creation killed half-way leaves.
    """
    for name in (KEY, LEDGER, SECRET):
        (folder / name).unlink(missing_ok=True)
        sync(folder)


def read_key(path: Path) -> bytes:
    """The ledger's key; LedgerError if it is missing, cut, or open to others than its owner."""
    try:
        key = read_private(path, "the ledger's key")
    except SecretError as error:
        raise LedgerError(str(error)) from error
    if len(key) != KEY_BYTES:
        raise LedgerError(f"{path}: the ledger's key is cut or damaged: bring it back, {BEGIN_ANEW}")
    return key


def key_is_cut(folder: Path) -> bool:
    """True if the ledger's key is missing or not whole, as a creation killed in its last moment leaves it."""
    path = folder / KEY
    return not path.exists() or path.stat().st_size != KEY_BYTES


def write_key(path: Path, key: bytes) -> None:
    """Saves the ledger's key in a new file, mode 0600."""
    try:
        write_private(path, key, "the ledger's key")
    except SecretError as error:
        raise LedgerError(str(error)) from error


def key_of_begun(folder: Path, secret: RunSecret) -> bytes:
    """The key of a ledger that exists; one that a killed creation could not write is derived again."""
    path = folder / KEY
    if not key_is_cut(folder):
        return read_key(path)
    key = secret.key("ledger")
    chain = open_chain(folder, key, to_append=False)
    chain.close()
    if len(chain.macs) > 1:
        raise LedgerError(f"{path}: the ledger's key is missing or cut: bring it back, {BEGIN_ANEW}")
    path.unlink(missing_ok=True)
    write_key(path, key)
    return key
