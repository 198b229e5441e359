"""Checks of a release against its own certificate: files, ε, signature. Nothing that is read is trusted."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from curriculumdp.privacy.accountant import ACCOUNTANT, epsilon_rdp, has_opacus
from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.agreement import config_problems, network_problems, noise_problems
from curriculumdp.release.certificate import (
    MAX_BYTES,
    SLACK,
    Accounting,
    Certificate,
    CertificateError,
    Guarantee,
    PldAccounting,
    account,
    account_by_pld,
    contradictions,
    parse_certificate,
)
from curriculumdp.release.files import CERTIFICATE, SIGNATURE, file_problems, list_files, read_limited
from curriculumdp.release.signature import is_signed, load_signer

MAX_SHOWN = 20  # problems: a list that scrolls could hide the verdict
# How far a stated value may lie above the recomputed one, times (1 + it), if another version of the accountant
# computed it. None may lie below by more than SLACK: that would promise too much.
FIGURES = {"epsilon_of_events": 1e-3, "epsilon_replace_one": 1e-3, "opacus_rdp": 1e-2, "opacus_prv": 5e-2}


@dataclass(frozen=True)
class Checked:
    """The result of checking a release: `problems`, one line each; None for what could not be read or recomputed."""

    problems: list[str]
    certificate: Certificate | None = None
    recomputed: PldAccounting | None = None


def verify_release(folder: Path, signer_public_key: Path | None = None) -> list[str]:
    """Return the problems that `check_release` finds, one line each; none if the release matches its certificate."""
    return check_release(folder, signer_public_key).problems


def check_release(folder: Path, signer_public_key: Path | None = None) -> Checked:
    """Check a release against its own certificate.

    Recomputes ε from the certificate's events by PLD and, where Opacus is installed, by its two accountants. With
    `signer_public_key` (Ed25519, PEM) the certificate must also be signed with that key; without it nothing is proved
    about who made the release. Takes seconds; only Opacus imports torch. Raises SignatureError if the key itself is
    unusable.
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
    problems += network_problems(folder, certificate.guarantee)
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
        elif not is_signed(content, read_limited(folder / SIGNATURE, 1000), signer):
            problems.append(f"{CERTIFICATE} is not signed by {signer_public_key}")
    return Checked(problems, certificate, recomputed)


def failure(release: Path, problems: list[str]) -> list[str]:
    """Return in words that a release is not verified: the verdict first and last, the first problems between."""
    verdict = f"NOT VERIFIED: {release}"
    shown = [f"WRONG: {problem}" for problem in problems[:MAX_SHOWN]]
    more = [f"and {len(problems) - MAX_SHOWN} more"] if problems[MAX_SHOWN:] else []
    return [verdict, *shown, *more, verdict]


def summary(
    release: Path, certificate: Certificate, recomputed: PldAccounting, signer: Path | None
) -> list[str]:
    """Return in words that a release without problems is verified, and what it costs. ε and δ are rounded up.

    signer: the public key that it was checked with, or None.
    """
    promised = certificate.guarantee
    shown = "yes" if promised.private_metrics_shown else "no"
    return [
        f"verified: {release}",
        f"promised: at most ε = {rounded_up(promised.epsilon)} at δ = {rounded_up(promised.delta)} per unit (zero-out)",
        "Every check passed. The figures below come from different methods: that they differ is expected, and each "
        "line says how it is read.",
        f"files: {len(certificate.files)}, each as certified",
        "cost, recomputed (PLD, which the promise rests on; it must not exceed the promise): "
        f"ε = {rounded_up(recomputed.epsilon_of_events)}",
        *_cross_checks(promised, recomputed),
        *_replaced_one(recomputed),
        f"stopped: {promised.stopped}; private metrics shown: {shown}",
        f"origin: signed by {signer}" if signer else "origin not proved: pass --signer PUB",
        f"a unit is {promised.unit!r}",  # last: no sender's text can pass for one of the lines above
    ]


def _cross_checks(promised: Guarantee, recomputed: PldAccounting) -> list[str]:
    """Return lines on the methods beside PLD, each with how it is read, and what everything was recomputed with."""
    looser = "passed: it is a looser upper bound by nature, so a value above the promise is expected"
    if not isinstance(recomputed, Accounting):
        rough = epsilon_rdp([row.event for row in promised.events], promised.delta)
        return [
            f"cross-check by dp_accounting's RDP: {rounded_up(rough)}; {looser}",
            "not checked: the certificate's figures by Opacus, which is not installed here (the extra [train] has "
            "it); the promise does not rest on them",
            f"recomputed with: {recomputed.accountant}",
        ]
    lines = []
    if recomputed.opacus_prv is not None:
        low, middle, high = map(rounded_up, recomputed.opacus_prv)
        lines.append(
            f"cross-check by Opacus PRV: {middle}, known to lie between {low} and {high}; passed: it would contradict "
            "the promise only if the lowest value lay above it"
        )
    return [
        *lines,
        f"cross-check by Opacus RDP: {rounded_up(recomputed.opacus_rdp)}; {looser}",
        f"recomputed with: {recomputed.accountant}; Opacus {recomputed.opacus}",
    ]


def _replaced_one(recomputed: PldAccounting) -> list[str]:
    if recomputed.epsilon_replace_one is None:
        return []
    return [
        "under replace-one adjacency (a unit exchanged for another: a stricter question than the promise answers, so "
        f"a larger value is expected): ε = {rounded_up(recomputed.epsilon_replace_one)}"
    ]


def read_certificate(folder: Path) -> Certificate:
    """Return the certificate of a release, not yet checked against anything. Raises CertificateError, one line."""
    return parse_certificate(read_certificate_bytes(folder))


def read_certificate_bytes(folder: Path) -> bytes:
    """Return privacy.json, or its first MAX_BYTES + 1 bytes if it is too long. Raises CertificateError."""
    try:
        return read_limited(folder / CERTIFICATE, MAX_BYTES + 1)
    except OSError as error:
        raise CertificateError(
            f"{folder} has no readable {CERTIFICATE} ({error.strerror}): not a release"
        ) from None


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


def recompute(guarantee: Guarantee) -> tuple[PldAccounting | None, list[str]]:
    """Return (the cost, []), or (None, one line on why the cost is unknown or exceeds the promise).

    The cost is an Accounting if Opacus is installed: the promise rests on PLD alone, and Opacus checks it.
    """
    try:
        return (account if has_opacus() else account_by_pld)(guarantee), []
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        known = isinstance(error, CertificateError)
        return None, [str(error) if known else f"ε cannot be recomputed: {error}"]


def figure_problems(stated: Accounting, found: PldAccounting) -> list[str]:
    """Return a line per value of `stated` that does not agree with `found`'s, of those that `found` has.

    The same version of an accountant finds the same value. Another version may have found a larger one, never a lower.
    """
    problems = []
    for name, tolerance in FIGURES.items():
        if not hasattr(found, name):
            continue
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
