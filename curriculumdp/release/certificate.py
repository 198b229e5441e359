"""The privacy certificate: what a release guarantees, and everything needed to recompute its ε. PUBLIC.

It holds no realised count, no digest of the data, no secret and no path. Its text form is canonical: equal
certificates are equal bytes, so that a reader can check the file's words against its values.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

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

FORMAT = "curriculumdp privacy certificate 3"
MAX_BYTES = 1_000_000  # of a certificate
SLACK = 1e-6  # relative; two versions of an accountant may differ in the last digits

ADJACENCY = (
    "Zero-out: a unit's contribution is either present or zero; the declared number of units stays public. A removed "
    "unit's slot is still sampled and packed, so no other unit's position, microbatch or arithmetic changes: the "
    "sums of two neighbouring data sets differ by exactly that unit's clipped vector. Epsilon is the same as under "
    "add/remove adjacency. "
)
REPLACE_ONE = (
    "Under replace-one adjacency, where another unit takes its slot, epsilon is {}: "
    "accounting.epsilon_replace_one."
)
NO_REPLACE_ONE = (
    "Under replace-one adjacency, where another unit takes its slot, no finite epsilon was found."
)
PUBLIC = "The training config, the numbers of units and classes, and the image shape are treated as public."
BEGAN_FROM = (
    " The weights that training started from are treated as public too: {}. No check can confirm this."
)
NAMED = " So are the names of the classes."
EMBEDDED_BY = (
    " So is the projection of the frequency phase's embedding: {features} random frequencies of bandwidth "
    "{bandwidth!r}, drawn under the public seed {seed}, neither from the images nor from the run's secret."
)
CONDITIONS = (
    "the run's input checks: the images belonged to exactly the declared number of units, or the units were those of "
    "a public list (data.roster), of which some may own no image; labels and image shape were as declared. No "
    "check can detect whether one person's images were spread over several units."
)
SCOPE = "This run alone, with all its events, including repeated ones. Other runs on the same data add to the cost."
PROOF = (
    "Anyone can check that a release is consistent and, with a signature, who made it. Only the code and "
    "its tests can show that the training was the one named here."
)
STOPPED = {
    "planned": "The run completed its plan.",
    "budget": "The run stopped early, before an event that would have exceeded its budget.",
    "operator": "The operator ended the run early.",
}

Line = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(require_line)]
# Versions cannot be recomputed, so they may hold only the characters of a version, never a sentence.
Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Version = Annotated[str, Field(pattern=r"^(not installed|[0-9][A-Za-z0-9.+!_-]{0,99})$")]
Cost = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class CertificateError(UserError):
    """A certificate that cannot be read or that its own events contradict; the message is one line."""


class Values(BaseModel):
    """Base of a certificate's parts: frozen, strictly typed, finite."""

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


class PublicEmbedding(Values):
    """What the frequency phase's embedding is made of, none of it from the data (`curriculum.embedding.Embedding`)."""

    features: Annotated[int, Field(ge=1, le=10**6)]
    bandwidth: Annotated[float, Field(gt=0, le=1e9)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class PublicFacts(Values):
    """What the guarantee treats as public. image_shape: (channels, height, width).

    initial_weights: the name of the weights that training started from, None if they were random. id2label: the names
    of the classes, id2label[label], None for classes that are only numbers. embedding: None without a frequency phase.
    """

    units: Count
    classes: Count
    image_shape: tuple[Count, Count, Count]
    initial_weights: Line | None = None
    id2label: tuple[Line, ...] | None = None
    embedding: PublicEmbedding | None = None

    @model_validator(mode="after")
    def _names_each_class_once(self) -> Self:
        names = self.id2label
        if names is not None and (len(names) != self.classes or len(set(names)) < len(names)):
            raise ValueError(f"id2label must give each of {self.classes} classes a name of its own")
        return self


class Guarantee(Values):
    """What a run states about itself. `epsilon` is the promise: at least what the events cost."""

    epsilon: Annotated[float, Field(gt=0, le=1e6)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Line
    public: PublicFacts
    events: Annotated[tuple[CertifiedEvent, ...], Field(max_length=32)]
    stopped: Literal["planned", "budget", "operator"]
    private_metrics_shown: bool


class PldAccounting(Values):
    """What the events cost by PLD, which the promise rests on. epsilon_replace_one is None if no ε was found."""

    accountant: Line
    epsilon_of_events: Cost
    epsilon_replace_one: Cost | None


class Accounting(PldAccounting):
    """What the events cost, by PLD and by Opacus's two accountants. opacus_prv: (low, estimate, high).

    opacus_prv is None if no ε was found or it cannot be trusted, as at a δ below 1e-8.
    """

    opacus: Version
    opacus_rdp: Cost
    opacus_prv: tuple[Cost, Cost, Cost] | None


class Certificate(Values):
    """All of privacy.json except its fixed words. files: SHA-256 of every other file, by relative path."""

    guarantee: Guarantee
    accounting: Accounting
    versions: dict[Package, Version]
    files: dict[Line, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


def account(guarantee: Guarantee) -> Accounting:
    """Return what the events cost, by PLD and by Opacus's two accountants. Imports torch.

    Raises CertificateError if that contradicts the promised ε, AccountingError if PLD or Opacus's RDP finds no ε.
    """
    events, delta = [row.event for row in guarantee.events], guarantee.delta
    found = Accounting(
        **account_by_pld(guarantee).model_dump(),
        opacus=version("opacus"),
        opacus_rdp=epsilon_opacus_rdp(events, delta),
        opacus_prv=_if_found(epsilon_prv, events, delta),
    )
    for contradiction in contradictions(guarantee, found):
        raise CertificateError(contradiction)
    return found


def account_by_pld(guarantee: Guarantee) -> PldAccounting:
    """Return what the events cost by PLD alone, without torch. Raises as `account` does."""
    events, delta = [row.event for row in guarantee.events], guarantee.delta
    found = PldAccounting(
        accountant=ACCOUNTANT,
        epsilon_of_events=epsilon(events, delta),
        epsilon_replace_one=_if_found(epsilon_replace_one, events, delta),
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


def contradictions(guarantee: Guarantee, found: PldAccounting) -> list[str]:
    """Return one line per method by which the events cost more than the promised ε.

    Opacus's RDP is an upper bound, usually above a budget solved by PLD: it cannot contradict a promise.
    """
    costs = [("PLD", found.epsilon_of_events)]
    if isinstance(found, Accounting) and found.opacus_prv:
        costs.append(("Opacus's PRV, at least,", found.opacus_prv[0]))
    return [
        f"the certificate promises ε = {rounded_up(guarantee.epsilon)} at δ = {rounded_up(guarantee.delta)}, but "
        f"its events cost {rounded_up(cost, 9)} by {method}"
        for method, cost in costs
        if cost > guarantee.epsilon * (1 + SLACK)
    ]


def statement(guarantee: Guarantee, cost: Accounting) -> dict[str, str]:
    """Return the certificate's sentences by key, with its values filled in, rounded up."""
    initial, replaced = guarantee.public.initial_weights, cost.epsilon_replace_one
    embedding = guarantee.public.embedding
    shown = (
        "metrics computed from the sensitive images without noise (losses) were shown on the console or to trackers. "
        "Whatever was passed on from there is not covered."
    )
    return {
        "guarantee": (
            f"Everything in this release computed from the sensitive images is ({rounded_up(guarantee.epsilon)}, "
            f"{rounded_up(guarantee.delta)})-differentially private for one unit, under zero-out adjacency. "
            f"A unit is {guarantee.unit}."
        ),
        "adjacency": ADJACENCY
        + (NO_REPLACE_ONE if replaced is None else REPLACE_ONE.format(rounded_up(replaced))),
        "public": PUBLIC
        + (NAMED if guarantee.public.id2label else "")
        + (BEGAN_FROM.format(initial) if initial else "")
        + (EMBEDDED_BY.format(**embedding.model_dump()) if embedding else ""),
        "conditional_on": CONDITIONS,
        "private_metrics": shown if guarantee.private_metrics_shown else "none were shown outside the run.",
        "stopped": STOPPED[guarantee.stopped],
        "scope": SCOPE,
        "proof": PROOF,
    }


def certificate_bytes(certificate: Certificate) -> bytes:
    """Return the content of privacy.json: the canonical text of a certificate, in UTF-8."""
    words = statement(certificate.guarantee, certificate.accounting)
    content: dict[str, Any] = {"format": FORMAT, "statement": words}
    content |= certificate.model_dump(mode="json")
    public = content["guarantee"]["public"]
    for name in ("initial_weights", "id2label", "embedding"):
        if public[name] is None:
            del public[name]
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_certificate(content: bytes) -> Certificate:
    """Parse the content of privacy.json. Raises CertificateError, one line, if it is not a valid certificate."""
    if len(content) > MAX_BYTES:
        raise CertificateError(
            f"privacy.json has {len(content)} bytes; a certificate may have at most {MAX_BYTES}"
        )
    try:
        parsed = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"privacy.json is not JSON: {_one_line(str(error))}") from None
    values = _values(parsed)
    try:
        certificate = Certificate.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CertificateError(f"privacy.json: {_one_line(key)}: {_one_line(first['msg'])}") from None
    if certificate_bytes(certificate) != content:
        raise CertificateError(
            "privacy.json is not in the canonical form of a certificate: its words, the order of its keys or "
            "the format of its numbers were changed"
        )
    return certificate


def _values(parsed: Any) -> Mapping[str, Any]:
    """Return a certificate's values, without its format and fixed words. Raises CertificateError on another format."""
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
        found = parsed.get("format") if isinstance(parsed, dict) else type(parsed).__name__
        raise CertificateError(
            f"privacy.json: format is {_one_line(repr(found))}; this version reads '{FORMAT}': verify it with the "
            "version that made it"
        )
    return {key: value for key, value in parsed.items() if key not in ("format", "statement")}


def _one_line(text: str) -> str:
    """Return untrusted text, safe to print on a terminal, truncated to 200 characters."""
    return printable(text)[:200]
