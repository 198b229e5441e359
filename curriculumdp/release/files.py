"""The files of a release: the allow-list, and what a folder holds beside, without or against it."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from curriculumdp.release.certificate import Certificate

CERTIFICATE, SIGNATURE = "privacy.json", "privacy.json.sig"
CENTRAL, FREQUENCY = "central.png", "frequency.png"
WEIGHTS, CONFIG = "unet/diffusion_pytorch_model.safetensors", "training_config.yaml"
NETWORK = "unet/config.json"
REQUIRED = frozenset(
    {
        "model_index.json",
        NETWORK,
        WEIGHTS,
        "scheduler/scheduler_config.json",
        "README.md",
        CONFIG,
        "samples.png",
    }
)
# All that a release may hold. Weights are safetensors, and nothing here is ever unpickled.
ALLOWED = REQUIRED | {CENTRAL, FREQUENCY, CERTIFICATE, SIGNATURE}


def release_of(folder: Path) -> Path:
    """Return `folder`/release if `folder` itself holds nothing of a release and that is a folder, else `folder`.

    A model beside somebody's genuine release must not be taken for it.
    """
    inside = folder / "release"
    own = {name.partition("/")[0] for name in ALLOWED}
    if inside.is_symlink() or not inside.is_dir() or any(os.path.lexists(folder / name) for name in own):
        return folder
    return inside


def list_files(folder: Path) -> tuple[set[str], list[str]]:
    """Return the relative paths of the allowed regular files, and a line per other entry. Follows no link."""
    found: set[str] = set()
    problems: list[str] = []
    try:
        entries = list(_walk(folder, ""))
    except OSError as error:
        return found, [f"{error.filename!r} cannot be read: {error.strerror}"]
    for name, mode in entries:
        if stat.S_ISLNK(mode):
            problems.append(f"{name!r} is a link, which a release may not hold")
        elif name not in ALLOWED or not stat.S_ISREG(mode):
            problems.append(f"{name!r} does not belong in a release")
        else:
            found.add(name)
    return found, problems


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, mode = prefix + entry.name, entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and any(allowed.startswith(name + "/") for allowed in ALLOWED):
            yield from _walk(Path(entry.path), name + "/")
        else:
            yield name, mode


def file_problems(folder: Path, found: set[str], certificate: Certificate) -> list[str]:
    """Return a line per file that is missing, extra or changed, or that should hold weights and does not."""
    listed = certificate.files
    problems = [f"{name!r} may not be listed in {CERTIFICATE}" for name in sorted(set(listed) - ALLOWED)]
    problems += [f"{name} must be listed in {CERTIFICATE}" for name in sorted(REQUIRED - set(listed))]
    present = found - {CERTIFICATE, SIGNATURE}
    problems += [f"{name} is missing" for name in sorted((set(listed) & ALLOWED) - found)]
    problems += [f"{name} is not in {CERTIFICATE}: it was added" for name in sorted(present - set(listed))]
    for name in sorted(present & set(listed)):
        try:
            if file_sha256(folder / name) != listed[name]:
                problems.append(f"{name} was changed: its SHA-256 is not the one in {CERTIFICATE}")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
    if WEIGHTS in found:
        problems += _weights_problems(folder / WEIGHTS)
    return problems


def _weights_problems(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as weights:
            return [] if weights.keys() else [f"{WEIGHTS} holds no weights"]
    except (SafetensorError, OSError) as error:
        return [f"{WEIGHTS} is not in the safetensors format: {error}"]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_limited(path: Path, limit: int) -> bytes:
    """Return at most the first `limit` bytes of a file."""
    with path.open("rb") as file:
        return file.read(limit)
