"""Checks of a release against its own certificate: files, ε, signature. Nothing that is read is trusted."""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from curriculumdp.config.yaml_file import parse_yaml
from curriculumdp.phases import PHASES
from curriculumdp.privacy.accountant import ACCOUNTANT, epsilon
from curriculumdp.privacy.event import MIN_NOISE_MULTIPLIER, rounded_up
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
# All that a release may hold. Weights are safetensors, and nothing here is ever unpickled.
ALLOWED = REQUIRED | {CENTRAL, CERTIFICATE, SIGNATURE}
# The option that sets how often a phase is charged; a run that completed its plan charged at least that often.
STEPS = {name: facts.count for name, facts in PHASES.items() if facts.charged}
# The largest fraction of a budget that the solver leaves unspent.
LEFT_BY_SOLVING = 1e-3
# How far a stated value may lie above the recomputed one, times (1 + it), if another version of the accountant
# computed it. None may lie below by more than SLACK: that would promise too much.
FIGURES = {"epsilon_of_events": 1e-3, "epsilon_replace_one": 1e-3, "opacus_rdp": 1e-2, "opacus_prv": 5e-2}


@dataclass(frozen=True)
class Checked:
    """The result of checking a release: `problems`, one line each; None for what could not be read or recomputed."""

    problems: list[str]
    certificate: Certificate | None = None
    recomputed: Accounting | None = None


def verify_release(folder: Path, signer_public_key: Path | None = None) -> list[str]:
    """Return the problems that `check_release` finds, one line each; none if the release matches its certificate."""
    return check_release(folder, signer_public_key).problems


def check_release(folder: Path, signer_public_key: Path | None = None) -> Checked:
    """Check a release against its own certificate.

    Recomputes ε from the certificate's events by PLD and by Opacus. With `signer_public_key` (Ed25519, PEM) the
    certificate must also be signed with that key; without it nothing is proved about who made the release. Takes
    seconds and imports torch. Raises SignatureError if the key itself is unusable.
    """
    signer = load_signer(signer_public_key) if signer_public_key is not None else None
    if not folder.is_dir():
        return Checked([f"{folder} is not a folder"])
    found, problems = list_files(folder)
    if CERTIFICATE not in found:
        return Checked([*problems, f"{CERTIFICATE} is missing: nothing states what this release guarantees"])
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
        problems += [] if problems else noise_problems(folder, certificate.guarantee, recomputed)
    if signer is not None:
        if SIGNATURE not in found:
            problems.append(f"{SIGNATURE} is missing: the release is not signed")
        elif not is_signed(content, _read(folder / SIGNATURE, 1000), signer):
            problems.append(f"{CERTIFICATE} is not signed by {signer_public_key}")
    return Checked(problems, certificate, recomputed)


def summary(certificate: Certificate, recomputed: Accounting) -> list[str]:
    """Return in words what a release without problems promises and costs. ε and δ are rounded up."""
    promised = certificate.guarantee
    lines = [
        f"files: {len(certificate.files)}, each as certified",
        f"promised: ε = {rounded_up(promised.epsilon)} at δ = {rounded_up(promised.delta)}, zero-out",
        f"cost, recomputed: PLD {rounded_up(recomputed.epsilon_of_events)}, "
        f"Opacus RDP {rounded_up(recomputed.opacus_rdp)}",
    ]
    if recomputed.opacus_prv is not None:
        low, middle, high = map(rounded_up, recomputed.opacus_prv)
        lines.append(f"Opacus PRV {middle} (from {low} to {high})")
    if recomputed.epsilon_replace_one is not None:
        lines.append(f"under replace-one: PLD {rounded_up(recomputed.epsilon_replace_one)}")
    shown = "yes" if promised.private_metrics_shown else "no"
    return [
        *lines,
        f"recomputed with: {recomputed.accountant}; Opacus {recomputed.opacus}",
        f"stopped: {promised.stopped}; private metrics shown: {shown}",
        f"a unit is {promised.unit!r}",  # last: no sender's text can pass for one of the lines above
    ]


def read_certificate(folder: Path) -> Certificate:
    """Return the certificate of a release, not yet checked against anything. Raises CertificateError, one line."""
    return parse_certificate(read_certificate_bytes(folder))


def read_certificate_bytes(folder: Path) -> bytes:
    """Return privacy.json, or its first MAX_BYTES + 1 bytes if it is too long. Raises CertificateError."""
    try:
        return _read(folder / CERTIFICATE, MAX_BYTES + 1)
    except OSError as error:
        raise CertificateError(
            f"{folder} has no readable {CERTIFICATE} ({error.strerror}): not a release"
        ) from None


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


def config_problems(folder: Path, guarantee: Guarantee) -> list[str]:
    """Return a line per fact of the certificate that the training config or another file contradicts."""
    try:
        config = parse_yaml(_read(folder / CONFIG, MAX_BYTES), CONFIG)
        pairs = [*_facts(config, guarantee), *_settings(config, guarantee), *_counts(config, guarantee)]
        return [
            *(
                f"{key} is {_shown(was)} in {CONFIG} but {now!r} in {CERTIFICATE}"
                for key, was, now in pairs
                if was != now
            ),
            *_course_problems(_planned(config), guarantee, (folder / CENTRAL).exists()),
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return [f"{CONFIG} is not a training config"]


Pairs = Iterator[tuple[str, Any, Any]]


def _facts(config: Any, guarantee: Guarantee) -> Pairs:
    """Yield (key, the config's value, the certificate's value) for facts that both state directly."""
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
    """Yield the same for each event's parameters; DP-SGD's noise is solved, so only its cost can be checked."""
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
    """Return the default clip norm of a query: the largest norm that one image's pixels can have."""
    scale = 1.0 if central.get("statistic") == "mode" else 0.5
    return math.sqrt(data["channels"] * central["size"] ** 2) * scale


def _planned(config: Any) -> dict[str, int]:
    """Return how many events each charged phase of the curriculum plans; a run may have no private phase."""
    phases = config.get("curriculum", list(STEPS))
    return {name: config[name][key] for name, key in STEPS.items() if name in phases}


def _counts(config: Any, guarantee: Guarantee) -> Pairs:
    """Yield the same for the number of events of each phase, if the run completed its plan."""
    done = {row.name: row.count for row in guarantee.events}
    for name, planned in _planned(config).items() if guarantee.stopped == "planned" else ():
        yield f"{name}.{STEPS[name]}", planned, min(planned, done.get(name, 0))


def _course_problems(planned: dict[str, int], guarantee: Guarantee, shows_central: bool) -> Iterator[str]:
    """Yield a line per reason why no run of the planned phases can have charged the certificate's events."""
    names = [row.name for row in guarantee.events]
    done = {row.name: row.count for row in guarantee.events}
    reached = {name for name, count in planned.items() if done.get(name, 0) >= count}
    if names != [name for name in planned if name in done]:
        yield f"events are {names} in {CERTIFICATE}, but the curriculum has {list(planned)}, in this order, each once"
    if not any(done.values()):
        yield f"{CERTIFICATE} lists no event: weights that cost nothing were not trained on the data"
    if shows_central and not done.get("central"):
        yield f"{CENTRAL} shows central images, but {CERTIFICATE} lists no central query"
    if done.get("private") and "central" in planned and "central" not in reached:
        yield f"{CERTIFICATE} lists steps of DP-SGD, but not all the queries that precede them"
    if guarantee.stopped == "budget" and not reached:
        yield f"stopped is budget in {CERTIFICATE}, but no phase has completed its planned events"


def noise_problems(folder: Path, guarantee: Guarantee, recomputed: Accounting) -> list[str]:
    """Return a line if DP-SGD's noise multiplier is larger than the one its plan was solved for.

    It is solved once, from the config alone, so that the whole plan costs all but a thousandth of the budget. For a run
    that made another number of steps, the plan's counts are used.
    """
    private = next((row for row in guarantee.events if row.name == "private"), None)
    if (
        private is None or private.noise_multiplier <= MIN_NOISE_MULTIPLIER
    ):  # the smallest one ever solved for
        return []
    planned = _planned(parse_yaml(_read(folder / CONFIG, MAX_BYTES), CONFIG))
    if all(row.count == planned[row.name] for row in guarantee.events):
        cost = recomputed.epsilon_of_events
    else:
        rows = [replace(row.event, count=planned[row.name]) for row in guarantee.events]
        cost = epsilon(rows, guarantee.delta)
    if cost >= guarantee.epsilon * (1 - LEFT_BY_SOLVING):
        return []
    return [
        f"private.noise_multiplier is {private.noise_multiplier:.9g} in {CERTIFICATE}: with it the planned run costs "
        f"{cost:.6g}, but noise is solved to use all of {guarantee.epsilon:.6g}"
    ]


def version_problems(certificate: Certificate) -> list[str]:
    """Return a line per accountant's name that no version of this program can have written."""
    versions, stated = certificate.versions, certificate.accounting
    written = {
        "accountant": ACCOUNTANT.replace(version("dp-accounting"), versions.get("dp-accounting", "VERSION")),
        "opacus": versions.get("opacus", "VERSION"),
    }
    return [
        f"accounting.{name} is {getattr(stated, name)!r}, but the certificate's versions give {text!r}"
        for name, text in written.items()
        if getattr(stated, name) != text
    ]


def _shown(value: object) -> str:
    # A few lines of YAML can expand to a nested value whose text would fill the memory.
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return repr(value)[:80] if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def recompute(guarantee: Guarantee) -> tuple[Accounting | None, list[str]]:
    """Return (the cost, []), or (None, one line on why the cost is unknown or exceeds the promise)."""
    try:
        return account(guarantee), []
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        known = isinstance(error, CertificateError)
        return None, [str(error) if known else f"ε cannot be recomputed: {error}"]


def figure_problems(stated: Accounting, found: Accounting) -> list[str]:
    """Return a line per value of `stated` that does not agree with `found`'s.

    The same version of an accountant finds the same value. Another version may have found a larger one, never a lower.
    """
    problems = []
    for name, tolerance in FIGURES.items():
        was, now = _values(getattr(stated, name)), _values(getattr(found, name))
        by = "opacus" if name.startswith("opacus") else "accountant"
        same = getattr(stated, by) == getattr(found, by)
        if len(was) != len(now) or any(
            not _agrees(one, other, SLACK * other if same else tolerance * (1 + other))
            for one, other in zip(was, now, strict=True)
        ):
            problems.append(
                f"accounting.{name} is {_text(was)}, but the certificate's events give {_text(now)}"
            )
    return problems


def _values(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _agrees(stated: float, found: float, above: float) -> bool:
    return found * (1 - SLACK) <= stated <= found + above


def _text(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.9g}" for value in values) or "none"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)
