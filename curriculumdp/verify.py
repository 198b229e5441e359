"""Checks a release against its own certificate: files, ε, signature. Trusts nothing that it reads."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from curriculumdp.certificate import (
    LONGEST,
    Accounting,
    Certificate,
    CertificateError,
    Guarantee,
    account,
    parse_certificate,
)
from curriculumdp.config_file import parse_yaml
from curriculumdp.signature import is_signed, load_signer

CERTIFICATE, SIGNATURE = "privacy.json", "privacy.json.sig"
WEIGHTS, CONFIG = "unet/diffusion_pytorch_model.safetensors", "training_config.yaml"
REQUIRED = frozenset(
    {
        "model_index.json",
        "unet/config.json",
        WEIGHTS,
        "scheduler/scheduler_config.json",
        "README.md",
        CONFIG,
        "samples.png",
    }
)
# All that a release may hold; weights are safetensors, and nothing here is ever unpickled.
ALLOWED = REQUIRED | {"central.png", CERTIFICATE, SIGNATURE}
# How often a stage releases, by its key in the config; a run that did all that was planned did no less.
STEPS = {"central": "queries", "private": "steps"}
# Between versions of the accountants; what a figure of the certificate may differ from a recomputed one.
FIGURES = {"epsilon_of_releases": 1e-3, "epsilon_replace_one": 1e-3, "opacus_rdp": 1e-2}


def verify_release(folder: Path, signer_public_key: Path | None = None) -> list[str]:
    """What is wrong with a release, one line each; an empty list if it is what its certificate says.

    ε is recomputed from the certificate's releases by PLD and by Opacus. With `signer_public_key` (Ed25519,
    PEM) the certificate must also be signed by it; without one nothing is said about who made the release.
    Takes seconds and imports torch. Raises SignatureError if the key itself is unusable.
    """
    signer = load_signer(signer_public_key) if signer_public_key is not None else None
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    found, problems = list_files(folder)
    if CERTIFICATE not in found:
        return [*problems, f"{CERTIFICATE} is missing: nothing says what this release guarantees"]
    try:
        content = read_certificate_bytes(folder)
        certificate = parse_certificate(content)
    except CertificateError as error:
        return [*problems, str(error)]
    problems += file_problems(folder, found, certificate)
    problems += config_problems(folder, certificate.guarantee)
    problems += cost_problems(certificate)
    if signer is not None:
        if SIGNATURE not in found:
            problems.append(f"{SIGNATURE} is missing: the release is not signed")
        elif not is_signed(content, _read(folder / SIGNATURE, 1000), signer):
            problems.append(f"{CERTIFICATE} is not signed by {signer_public_key}")
    return problems


def read_certificate(folder: Path) -> Certificate:
    """The certificate of a release, not yet held against anything. Raises CertificateError, one line."""
    return parse_certificate(read_certificate_bytes(folder))


def read_certificate_bytes(folder: Path) -> bytes:
    """privacy.json, or as much of it as shows that it is too long. Raises CertificateError."""
    try:
        return _read(folder / CERTIFICATE, LONGEST + 1)
    except OSError as error:
        raise CertificateError(
            f"{folder} has no readable {CERTIFICATE} ({error.strerror}): no release"
        ) from None


def list_files(folder: Path) -> tuple[set[str], list[str]]:
    """(relative names of the regular files that a release may hold, a line for all else). Follows no link."""
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
    """A line for each file that is missing, extra, changed, or no weights."""
    listed = certificate.files
    problems = [f"{name!r} may not stand in {CERTIFICATE}" for name in sorted(set(listed) - ALLOWED)]
    problems += [f"{name} does not stand in {CERTIFICATE}" for name in sorted(REQUIRED - set(listed))]
    present = found - {CERTIFICATE, SIGNATURE}
    problems += [f"{name} is missing" for name in sorted((set(listed) & ALLOWED) - found)]
    problems += [f"{name} is not in {CERTIFICATE}: it was added" for name in sorted(present - set(listed))]
    for name in sorted(present & set(listed)):
        try:
            if file_sha256(folder / name) != listed[name]:
                problems.append(f"{name} was changed: its SHA-256 is not the certificate's")
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


def config_problems(folder: Path, guarantee: Guarantee) -> list[str]:
    """A line for each figure of the certificate that is not the training config's."""
    try:
        config = parse_yaml(_read(folder / CONFIG, LONGEST), CONFIG)
        data, privacy = config["data"], config["privacy"]
        logging = config.get("logging") or {}
        pairs = [
            ("data.units", data["units"], guarantee.public.units),
            ("data.classes", data["classes"], guarantee.public.classes),
            ("image shape", (data["channels"], data["size"], data["size"]), guarantee.public.image_shape),
            ("privacy.delta", privacy["delta"], guarantee.delta),
            ("privacy.epsilon", privacy["epsilon"], max(guarantee.epsilon, privacy["epsilon"])),
            ("data.unit", data.get("unit", guarantee.unit), guarantee.unit),
            ("init_from", config.get("init_from"), guarantee.public.initial_weights),
        ]
        if logging.get("show_private_metrics"):
            pairs.append(("logging.show_private_metrics", True, guarantee.private_metrics_shown))
        done = {row.name: row.count for row in guarantee.releases}
        for row in guarantee.releases:
            stage = config.get(row.name) or {}
            for key in ("sample_rate", "noise_multiplier", "clip_norm"):
                if stage.get(key) is not None:
                    pairs.append((f"{row.name}.{key}", stage[key], getattr(row, key)))
        stages = config.get("curriculum", list(STEPS))
        for name, key in STEPS.items() if guarantee.stopped == "planned" else ():
            # Central images alone: the settings of DP-SGD are there, for its noise levels, but no step of it.
            planned = (config.get(name) or {}).get(key, 0) if name in stages else 0
            pairs.append((f"{name}.{key}", planned, min(planned, done.get(name, 0))))
        return [
            f"{key} is {_shown(was)} in {CONFIG} and {now!r} in {CERTIFICATE}"
            for key, was, now in pairs
            if was != now
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return [f"{CONFIG} is not a training config"]


def _shown(value: object) -> str:
    # A few lines of YAML can stand for a nested value whose text would fill the memory.
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return repr(value)[:80] if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def cost_problems(certificate: Certificate) -> list[str]:
    """A line for each way in which the releases cost something else than the certificate says."""
    try:
        found = account(certificate.guarantee)
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        return [f"ε cannot be recomputed: {error}" if not isinstance(error, CertificateError) else str(error)]
    return figure_problems(certificate.accounting, found)


def figure_problems(stated: Accounting, found: Accounting) -> list[str]:
    """A line for each figure of `stated` that is not `found`'s."""
    pairs: list[tuple[str, Any, float, float]] = [
        (name, getattr(stated, name), getattr(found, name), tolerance * (1 + getattr(found, name)))
        for name, tolerance in FIGURES.items()
        if getattr(stated, name) is not None and getattr(found, name) is not None
    ]
    if stated.opacus_prv and found.opacus_prv:
        pairs += [
            ("opacus_prv", *both, 0.05) for both in zip(stated.opacus_prv, found.opacus_prv, strict=True)
        ]
    elif stated.opacus_prv != found.opacus_prv:
        return [f"accounting.opacus_prv is {stated.opacus_prv}; recomputed: {found.opacus_prv}"]
    return [
        f"accounting.{name} is {was:.6g}, but the certificate's releases cost {now:.6g} by that method"
        for name, was, now, tolerance in pairs
        if abs(was - now) > tolerance
    ]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)
