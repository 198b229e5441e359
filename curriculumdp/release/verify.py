"""Checks a release against its own certificate: files, ε, signature. Trusts nothing that it reads."""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from curriculumdp.config.yaml_file import parse_yaml
from curriculumdp.phases import PHASES
from curriculumdp.privacy.accountant import ACCOUNTANT
from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import (
    MAX_BYTES,
    SLACK,
    Accounting,
    Certificate,
    CertificateError,
    Guarantee,
    account,
    contradictions,
    parse_certificate,
)
from curriculumdp.release.signature import is_signed, load_signer

CERTIFICATE, SIGNATURE, CENTRAL = "privacy.json", "privacy.json.sig", "central.png"
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
ALLOWED = REQUIRED | {CENTRAL, CERTIFICATE, SIGNATURE}
# The option that says how often a phase is charged; a run that did all that was planned did no less.
STEPS = {name: facts.count for name, facts in PHASES.items() if facts.charged}
# How far a stated figure may lie above the recomputed one, times (1 + it), where another version of the accountant
# made it. None may lie below by more than SLACK: that would promise too much.
FIGURES = {"epsilon_of_events": 1e-3, "epsilon_replace_one": 1e-3, "opacus_rdp": 1e-2, "opacus_prv": 5e-2}


@dataclass(frozen=True)
class Checked:
    """What was found in a release: `problems`, one line each; None for what could not be read or recomputed."""

    problems: list[str]
    certificate: Certificate | None = None
    recomputed: Accounting | None = None


def verify_release(folder: Path, signer_public_key: Path | None = None) -> list[str]:
    """Return what is wrong with a release, one line each; nothing if it is what its certificate says.

    As `check_release`, which also returns what was read and recomputed.
    """
    return check_release(folder, signer_public_key).problems


def check_release(folder: Path, signer_public_key: Path | None = None) -> Checked:
    """Hold a release against its own certificate.

    ε is recomputed from the certificate's events by PLD and by Opacus. With `signer_public_key` (Ed25519,
    PEM) the certificate must also be signed by it; without one nothing is said about who made the release.
    Takes seconds and imports torch. Raises SignatureError if the key itself is unusable.
    """
    signer = load_signer(signer_public_key) if signer_public_key is not None else None
    if not folder.is_dir():
        return Checked([f"{folder} is not a folder"])
    found, problems = list_files(folder)
    if CERTIFICATE not in found:
        return Checked([*problems, f"{CERTIFICATE} is missing: nothing says what this release guarantees"])
    try:
        content = read_certificate_bytes(folder)
        certificate = parse_certificate(content)
    except CertificateError as error:
        return Checked([*problems, str(error)])
    problems += file_problems(folder, found, certificate)
    problems += config_problems(folder, certificate.guarantee)
    problems += version_problems(certificate)
    recomputed, unpaid = recompute(certificate.guarantee)
    problems += unpaid
    if recomputed is not None:
        problems += contradictions(certificate.guarantee, certificate.accounting)
        problems += figure_problems(certificate.accounting, recomputed)
    if signer is not None:
        if SIGNATURE not in found:
            problems.append(f"{SIGNATURE} is missing: the release is not signed")
        elif not is_signed(content, _read(folder / SIGNATURE, 1000), signer):
            problems.append(f"{CERTIFICATE} is not signed by {signer_public_key}")
    return Checked(problems, certificate, recomputed)


def summary(certificate: Certificate, recomputed: Accounting) -> list[str]:
    """Return what a release without problems promises and costs, for a person: ε and δ are rounded up."""
    said = certificate.guarantee
    lines = [
        f"files: {len(certificate.files)}, each as certified",
        f"promised: ε = {rounded_up(said.epsilon)} at δ = {rounded_up(said.delta)}, zero-out; "
        f"a unit is {said.unit!r}",
        f"cost, recomputed: PLD {rounded_up(recomputed.epsilon_of_events)}, "
        f"Opacus RDP {rounded_up(recomputed.opacus_rdp)}",
    ]
    if recomputed.opacus_prv is not None:
        low, middle, high = map(rounded_up, recomputed.opacus_prv)
        lines.append(f"and by Opacus PRV: {middle} (from {low} to {high})")
    if recomputed.epsilon_replace_one is not None:
        lines.append(f"under replace-one: PLD {rounded_up(recomputed.epsilon_replace_one)}")
    shown = "yes" if said.private_metrics_shown else "no"
    return [
        *lines,
        f"recomputed with: {recomputed.accountant}; Opacus {recomputed.opacus}",
        f"stopped: {said.stopped}; private figures shown: {shown}",
    ]


def read_certificate(folder: Path) -> Certificate:
    """The certificate of a release, not yet held against anything. Raises CertificateError, one line."""
    return parse_certificate(read_certificate_bytes(folder))


def read_certificate_bytes(folder: Path) -> bytes:
    """privacy.json, or as much of it as shows that it is too long. Raises CertificateError."""
    try:
        return _read(folder / CERTIFICATE, MAX_BYTES + 1)
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
    """Return a line for each fact of the certificate that the training config, or a file beside it, contradicts."""
    try:
        config = parse_yaml(_read(folder / CONFIG, MAX_BYTES), CONFIG)
        pairs = [*_facts(config, guarantee), *_settings(config, guarantee), *_counts(config, guarantee)]
        return [
            *(
                f"{key} is {_shown(was)} in {CONFIG} and {now!r} in {CERTIFICATE}"
                for key, was, now in pairs
                if was != now
            ),
            *_course_problems(_planned(config), guarantee, (folder / CENTRAL).exists()),
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return [f"{CONFIG} is not a training config"]


Pairs = Iterator[tuple[str, Any, Any]]


def _facts(config: Any, guarantee: Guarantee) -> Pairs:
    """(key, what the config says, what the certificate says) of what both state as it is."""
    data, privacy, public = config["data"], config["privacy"], guarantee.public
    yield "data.units", data["units"], public.units
    yield "data.classes", data["classes"], public.classes
    yield "image shape", (data["channels"], data["size"], data["size"]), public.image_shape
    yield "privacy.delta", privacy["delta"], guarantee.delta
    yield "privacy.epsilon", privacy["epsilon"], guarantee.epsilon
    yield "data.unit", data.get("unit", "one image"), guarantee.unit
    yield "init_from", config.get("init_from"), public.initial_weights
    if (config.get("logging") or {}).get("show_private_metrics"):
        yield "logging.show_private_metrics", True, guarantee.private_metrics_shown


def _settings(config: Any, guarantee: Guarantee) -> Pairs:
    """The same of each release's parameters; DP-SGD's noise was solved, and its cost is what shows it."""
    for row in guarantee.events:
        phase = config.get(row.name) or {}
        yield f"mechanism of {row.name}", "subsampled_gaussian", row.mechanism
        yield f"{row.name}.sample_rate", phase.get("sample_rate"), row.sample_rate
        clip_norm = phase.get("clip_norm")
        if row.name == "central":
            yield "central.noise_multiplier", phase.get("noise_multiplier"), row.noise_multiplier
            clip_norm = clip_norm or _widest(phase, config["data"])
        yield f"{row.name}.clip_norm", clip_norm, row.clip_norm


def _widest(central: Any, data: Any) -> float:
    """The clip norm of a query whose config leaves it open: the largest norm that one image's pixels can have."""
    scale = 1.0 if central.get("statistic") == "mode" else 0.5
    return math.sqrt(data["channels"] * central["size"] ** 2) * scale


def _planned(config: Any) -> dict[str, int]:
    """How often each phase of the curriculum was to release; central images alone have no step of DP-SGD."""
    phases = config.get("curriculum", list(STEPS))
    return {name: config[name][key] for name, key in STEPS.items() if name in phases}


def _counts(config: Any, guarantee: Guarantee) -> Pairs:
    """The same of how often a run that did all that was planned released."""
    done = {row.name: row.count for row in guarantee.events}
    for name, planned in _planned(config).items() if guarantee.stopped == "planned" else ():
        yield f"{name}.{STEPS[name]}", planned, min(planned, done.get(name, 0))


def _course_problems(planned: dict[str, int], guarantee: Guarantee, shows_central: bool) -> Iterator[str]:
    """A line for each way in which no run of the planned phases can have come to the certificate's events."""
    names = [row.name for row in guarantee.events]
    done = {row.name: row.count for row in guarantee.events}
    reached = {name for name, count in planned.items() if done.get(name, 0) >= count}
    if names != [name for name in planned if name in done]:
        yield f"events are {names} in {CERTIFICATE}: the curriculum has {list(planned)}, in this order, each once"
    if not any(done.values()):
        yield f"{CERTIFICATE} lists no release: weights that cost nothing were not trained on the data"
    if shows_central and not done.get("central"):
        yield f"{CENTRAL} shows central images, but {CERTIFICATE} lists no query of them"
    if done.get("private") and "central" in planned and "central" not in reached:
        yield f"{CERTIFICATE} lists steps of DP-SGD, but not all the queries that come before them"
    if guarantee.stopped == "budget" and not reached:
        yield f"stopped is budget in {CERTIFICATE}, but no phase has done what was planned and paid for"


def version_problems(certificate: Certificate) -> list[str]:
    """Return a line for each name of an accountant that no version of this program can have written."""
    versions, stated = certificate.versions, certificate.accounting
    written = {
        "accountant": ACCOUNTANT.replace(version("dp-accounting"), versions.get("dp-accounting", "VERSION")),
        "opacus": versions.get("opacus", "VERSION"),
    }
    return [
        f"accounting.{name} is {getattr(stated, name)!r}, but the certificate's versions say {text!r}"
        for name, text in written.items()
        if getattr(stated, name) != text
    ]


def _shown(value: object) -> str:
    # A few lines of YAML can stand for a nested value whose text would fill the memory.
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return repr(value)[:80] if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def recompute(guarantee: Guarantee) -> tuple[Accounting | None, list[str]]:
    """Return what the events cost, or None and a line that says why that is unknown or more than is promised."""
    try:
        return account(guarantee), []
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        known = isinstance(error, CertificateError)
        return None, [str(error) if known else f"ε cannot be recomputed: {error}"]


def figure_problems(stated: Accounting, found: Accounting) -> list[str]:
    """Return a line for each figure of `stated` that is not `found`'s.

    The same version of an accountant finds the same figure. Another may have found a larger one, none a lower one.
    """
    problems = []
    for name, tolerance in FIGURES.items():
        was, now = _figures(getattr(stated, name)), _figures(getattr(found, name))
        by = "opacus" if name.startswith("opacus") else "accountant"
        same = getattr(stated, by) == getattr(found, by)
        if len(was) != len(now) or any(
            not _agrees(one, other, SLACK * other if same else tolerance * (1 + other))
            for one, other in zip(was, now, strict=True)
        ):
            problems.append(
                f"accounting.{name} is {_told(was)}, but the certificate's events cost {_told(now)} by that method"
            )
    return problems


def _figures(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _agrees(stated: float, found: float, above: float) -> bool:
    return found * (1 - SLACK) <= stated <= found + above


def _told(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.9g}" for value in values) or "nothing that was found"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)
