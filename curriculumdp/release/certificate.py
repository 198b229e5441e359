"""The privacy certificate: what a release guarantees, with all that is needed to recompute its ε. PUBLIC.

It holds no realised count, no digest of the data, no secret and no path. Its text form is canonical: the same
certificate is the same bytes, so that a reader can hold the file against what its values say.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from curriculumdp.errors import UserError
from curriculumdp.printable import printable, require_line
from curriculumdp.privacy.accountant import (
    ACCOUNTANT,
    AccountingError,
    epsilon,
    epsilon_opacus_rdp,
    epsilon_prv,
    epsilon_replace_one,
)
from curriculumdp.privacy.event import MAX_CERTIFIED_CLIP_NORM, PrivacyEvent, rounded_up

FORMAT = "curriculumdp privacy certificate 2"
MAX_BYTES = 1_000_000  # bytes of a certificate that are read
SLACK = 1e-6  # relative: two versions of an accountant may differ in the last digits

ADJACENCY = (
    "Zero-out: a unit's contribution is there or is nothing; the declared number of units stays public. A removed "
    "unit's slot is still sampled and packed, so no other unit's position, microbatch or arithmetic changes: the "
    "sums of two neighbours differ by exactly that unit's clipped vector. Its epsilon equals add/remove's. "
)
REPLACE_ONE = (
    "Under replace-one, where another unit takes its place, epsilon is {}: accounting.epsilon_replace_one."
)
NO_REPLACE_ONE = "Under replace-one, where another unit takes its place, no finite epsilon was found."
PUBLIC = "The training config, the number of units and of classes, and the image shape count as public."
BEGAN_FROM = " The weights that training began from count as public too: {}. No check can see that they are."
CONDITIONS = (
    "the run's input checks, that is, the data had exactly the declared units, classes and shape. No check "
    "can see whether one person's images were spread over several units."
)
SCOPE = "This run alone, with all its events, repeated ones included. Other runs on the same data add to it."
PROOF = (
    "Anyone can check that a release is consistent and, with a signature, who made it. That the training was "
    "the one named, only the code and its tests can show."
)
STOPPED = {
    "planned": "The run did all that was planned.",
    "budget": "The run stopped early, before a release that would have passed its budget.",
    "operator": "The operator ended the run early.",
}

Line = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(require_line)]
# No version can be recomputed: they may hold a version's characters alone, and so no sentence.
Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Version = Annotated[str, Field(pattern=r"^(not installed|[0-9][A-Za-z0-9.+!_-]{0,99})$")]
Cost = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class CertificateError(UserError):
    """A certificate that cannot be read, or that its own events contradict; the message is one line."""


class Values(BaseModel):
    """Frozen, strict, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CertifiedEvent(Values):
    """`count` uses of a mechanism; its noise has standard deviation noise_multiplier · clip_norm."""

    name: Line
    mechanism: Literal["gaussian", "subsampled_gaussian"]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)]
    clip_norm: Annotated[float, Field(gt=0, le=MAX_CERTIFIED_CLIP_NORM)]
    count: Annotated[int, Field(ge=0, le=10**6)]

    @property
    def event(self) -> PrivacyEvent:
        return PrivacyEvent(self.name, self.mechanism, self.sample_rate, self.noise_multiplier, self.count)


class PublicFacts(Values):
    """What the guarantee takes as known to everybody. image_shape: (channels, height, width).

    initial_weights: the name of those that training began from, None where they were drawn at random.
    """

    units: Count
    classes: Count
    image_shape: tuple[Count, Count, Count]
    initial_weights: Line | None = None


class Guarantee(Values):
    """What a run says of itself. `epsilon` is what is promised: at least what the events cost."""

    epsilon: Annotated[float, Field(gt=0, le=1e6)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Line
    public: PublicFacts
    events: Annotated[tuple[CertifiedEvent, ...], Field(max_length=32)]
    stopped: Literal["planned", "budget", "operator"]
    private_metrics_shown: bool


class Accounting(Values):
    """What the events cost; opacus_prv is (low, estimate, high), or None where it finds no ε or cannot be
    trusted, as at a δ below 1e-8; epsilon_replace_one likewise."""

    accountant: Line
    epsilon_of_events: Cost
    epsilon_replace_one: Cost | None
    opacus: Version
    opacus_rdp: Cost
    opacus_prv: tuple[Cost, Cost, Cost] | None


class Certificate(Values):
    """The whole of privacy.json but its fixed words. files: SHA-256 of every other file, by relative name."""

    guarantee: Guarantee
    accounting: Accounting
    versions: dict[Package, Version]
    files: dict[Line, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


def account(guarantee: Guarantee) -> Accounting:
    """What the events cost, by PLD and by Opacus's two accountants; imports torch.

    Raises CertificateError if that contradicts the promised ε, AccountingError where no accountant finds one.
    """
    events, delta = [row.event for row in guarantee.events], guarantee.delta
    found = Accounting(
        accountant=ACCOUNTANT,
        epsilon_of_events=epsilon(events, delta),
        epsilon_replace_one=_if_found(epsilon_replace_one, events, delta),
        opacus=version("opacus"),
        opacus_rdp=epsilon_opacus_rdp(events, delta),
        opacus_prv=_if_found(epsilon_prv, events, delta),
    )
    for contradiction in contradictions(guarantee, found):
        raise CertificateError(contradiction)
    return found


def _if_found(
    method: Callable[[list[PrivacyEvent], float], Any], events: list[PrivacyEvent], delta: float
) -> Any:
    try:
        return method(events, delta)
    except AccountingError:
        return None


def contradictions(guarantee: Guarantee, found: Accounting) -> list[str]:
    """One line for each method by which the events cost more than the promised ε.

    Opacus's RDP is an upper bound, mostly above a solved budget: it says nothing against a promise.
    """
    costs = [("PLD", found.epsilon_of_events)]
    if found.opacus_prv:
        costs.append(("Opacus's PRV, at least,", found.opacus_prv[0]))
    return [
        f"the certificate promises ε = {rounded_up(guarantee.epsilon)} at δ = {rounded_up(guarantee.delta)}, but "
        f"its events cost {rounded_up(cost, 9)} by {method}"
        for method, cost in costs
        if cost > guarantee.epsilon * (1 + SLACK)
    ]


def statement(guarantee: Guarantee, cost: Accounting) -> dict[str, str]:
    """The certificate's fixed words, with its figures in them, rounded up."""
    begun, replaced = guarantee.public.initial_weights, cost.epsilon_replace_one
    shown = (
        "figures computed from the sensitive images without noise (losses) were shown on the console. "
        "What was passed on from there is not covered."
    )
    return {
        "guarantee": (
            f"All that this release was computed from the sensitive images is ({rounded_up(guarantee.epsilon)}, "
            f"{rounded_up(guarantee.delta)})-differentially private for one unit, under zero-out adjacency. "
            f"A unit is {guarantee.unit}."
        ),
        "adjacency": ADJACENCY
        + (NO_REPLACE_ONE if replaced is None else REPLACE_ONE.format(rounded_up(replaced))),
        "public": PUBLIC + (BEGAN_FROM.format(begun) if begun else ""),
        "conditional_on": CONDITIONS,
        "private_metrics": shown if guarantee.private_metrics_shown else "none were shown outside the run.",
        "stopped": STOPPED[guarantee.stopped],
        "scope": SCOPE,
        "proof": PROOF,
    }


def certificate_bytes(certificate: Certificate) -> bytes:
    """privacy.json: the one text form of a certificate, UTF-8."""
    words = statement(certificate.guarantee, certificate.accounting)
    whole: dict[str, Any] = {"format": FORMAT, "statement": words}
    whole |= certificate.model_dump(mode="json")
    public = whole["guarantee"]["public"]
    if public["initial_weights"] is None:
        del public["initial_weights"]
    return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_certificate(content: bytes) -> Certificate:
    """The certificate of privacy.json's bytes. Raises CertificateError, one line, for anything else."""
    if len(content) > MAX_BYTES:
        raise CertificateError(
            f"privacy.json has {len(content)} bytes; a certificate has at most {MAX_BYTES}"
        )
    try:
        whole = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"privacy.json is not JSON: {_one_line(str(error))}") from None
    values = _values(whole)
    try:
        certificate = Certificate.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CertificateError(f"privacy.json: {_one_line(place)}: {_one_line(first['msg'])}") from None
    if certificate_bytes(certificate) != content:
        raise CertificateError(
            "privacy.json is not in the one form that certificates have: its words, the order of its keys or "
            "the form of its numbers were changed"
        )
    return certificate


def _values(whole: Any) -> Mapping[str, Any]:
    """A certificate's JSON without its fixed words."""
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        found = whole.get("format") if isinstance(whole, dict) else type(whole).__name__
        raise CertificateError(
            f"privacy.json: format is {_one_line(repr(found))}; this version reads '{FORMAT}'"
        )
    return {key: value for key, value in whole.items() if key not in ("format", "statement")}


def _one_line(text: str) -> str:
    """Text of unknown origin, fit for a terminal."""
    return printable(text)[:200]
