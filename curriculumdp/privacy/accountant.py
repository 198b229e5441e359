"""The joint cost of events, ε at a given δ, by independent methods from dp_accounting and Opacus.

All of it is PUBLIC arithmetic. ε holds for zero-out adjacency (a unit's contribution is there or is nothing)
and for add/remove alike: both compare N(0, σ²) with the sampled mixture (1−q)·N(0, σ²) + q·N(1, σ²) in both
directions, and the worse direction counts. `epsilon` is the certified value; the other methods check it.
Only the functions that ask Opacus import torch, which Opacus needs.

| input | result |
|---|---|
| no events, or all counts 0 | ε = 0 |
| δ < 1e-10 or not a number | AccountingError: the tails that dp_accounting truncates would affect ε |
| ε above 300 by RDP | AccountingError, before convolutions that take minutes and gigabytes |
| rate, noise or count out of range | AccountingError where the `PrivacyEvent` is created |
"""

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from curriculumdp.privacy.composition import Losses, Part
from curriculumdp.privacy.event import MIN_DELTA, AccountingError, PrivacyEvent

__all__ = [
    "ACCOUNTANT",
    "AccountingError",
    "check_affordable",
    "check_delta",
    "compose",
    "epsilon",
    "epsilon_of_losses",
    "epsilon_of_rdp",
    "epsilon_opacus_rdp",
    "epsilon_path",
    "epsilon_prv",
    "epsilon_rdp",
    "epsilon_replace_one",
    "has_opacus",
    "losses",
    "rdp_curve",
]

DISCRETISATION = 1e-4
ACCOUNTANT = f"dp_accounting {version('dp-accounting')} PLD, discretisation 1e-4, tilted convolution"
# Opacus's convolutions lose precision earlier: at 1e-10 its interval has missed an ε known in closed form.
MIN_DELTA_PRV = 1e-8
MAX_EPSILON_RDP = 300.0

Relation = dp_accounting.NeighboringRelation


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Return an upper bound on the ε of all `events` together at `delta`, by privacy loss distributions.

    Google's dp_accounting puts the losses of one use on a grid of 1e-4, rounded to the safe side (Doroshenko et
    al. 2022, "Connect the Dots"); `composition` convolves them for both directions, also rounding to the safe side.
    Raises AccountingError if no finite ε exists.
    """
    check_affordable(events, delta)
    return epsilon_of_losses(compose(map(losses, events)), delta)


def epsilon_replace_one(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Return ε for replace-one adjacency, where a neighbour swaps one unit: 1.02 to 2.29 times `epsilon`."""
    check_affordable(events, delta)
    return epsilon_of_losses(compose(losses(event, Relation.REPLACE_ONE) for event in events), delta)


def epsilon_path(events: Sequence[PrivacyEvent], done: Sequence[int], delta: float) -> list[float]:
    """Return, for each i, `epsilon` after the first `done[i]` uses of `events`, taken in order."""
    check_affordable(events, delta)
    path = []
    for uses in done:
        left, parts = uses, []
        for event in events:
            used = min(left, event.count)
            parts.append(losses(replace(event, count=used)))
            left -= used
        path.append(epsilon_of_losses(compose(parts), delta))
    return path


def epsilon_rdp(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Return the same cost by Rényi differential privacy (dp_accounting): looser than `epsilon`, but faster."""
    return epsilon_of_rdp(rdp_curve(events), delta)


def rdp_curve(events: Sequence[PrivacyEvent], orders: Sequence[int] | None = None) -> np.ndarray:
    """Return the Rényi divergences of `events` together, float64 [orders], by default at dp_accounting's orders.

    Curves add up.
    """
    accountant = RdpAccountant(orders, Relation.ADD_OR_REMOVE_ONE)
    with _quiet():
        for event in events:
            if event.count:
                accountant.compose(_library_event(event), event.count)
    return accountant.rdp


def epsilon_of_rdp(curve: np.ndarray, delta: float) -> float:
    """Return the smallest ε that a curve from `rdp_curve` proves at `delta`."""
    check_delta(delta)
    with _quiet():
        found, _ = compute_epsilon(RdpAccountant().orders, curve, delta)
    return _finite(float(found), "dp_accounting's RDP")


def has_opacus() -> bool:
    """Return whether Opacus can be imported here; it needs torch, which a receiver of a release may do without."""
    try:
        import opacus.accountants  # noqa: F401 - the question is whether this works
    except ImportError:
        return False
    return True


def epsilon_opacus_rdp(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Return the same cost by Opacus's own implementation of RDP (imports torch)."""
    check_delta(delta)
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = _history(events)
    with _quiet():
        return _finite(float(accountant.get_epsilon(delta)), "Opacus's RDP")


def epsilon_prv(events: Sequence[PrivacyEvent], delta: float) -> tuple[float, float, float]:
    """Return (low, estimate, high) of ε by Opacus's privacy random variables (Gopi et al. 2021; imports torch).

    The true ε, in the direction that removes a unit, lies between low and high: about 0.01 below and above
    the estimate, or 0.2 % of ε if that is larger. Raises AccountingError if the method finds no ε, and for
    δ below 1e-8, where its rounding errors exceed that interval.
    """
    history = _history(events)
    check_delta(delta)
    if delta < MIN_DELTA_PRV:
        raise AccountingError(f"δ is {delta!r}: Opacus's PRV is accurate only from {MIN_DELTA_PRV:g} up")
    error = max(0.01, check_affordable(events, delta) / 500)  # memory grows with ε / error
    if not history:
        return 0.0, 0.0, 0.0
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    try:
        with _quiet(), np.errstate(divide="ignore"):  # it takes log(1 − q), also for q = 1
            found = accountant._get_dprv(error, delta / 1000).compute_epsilon(delta, delta / 1000, error)
    except (RuntimeError, ValueError, IndexError) as failure:
        raise AccountingError(
            f"Opacus's PRV finds no ε at δ = {delta:g}: {failure or type(failure)}"
        ) from None
    low, estimate, high = (_finite(float(value), "Opacus's PRV") for value in found)
    return max(0.0, low), max(0.0, estimate), high


def losses(event: PrivacyEvent, relation: Any = Relation.ADD_OR_REMOVE_ONE) -> Losses:
    """Return the privacy losses of all uses of an event, on dp_accounting's grid."""
    sigma, uses = event.noise_multiplier, event.count
    if uses == 0:
        return compose([])
    if event.sample_rate == 1:  # n Gaussians at σ equal one at σ/√n, with one rounding instead of n
        sigma, uses = sigma / math.sqrt(uses), 1
    removed, added = _losses_of_one(sigma, event.sample_rate, relation)
    several = replace(removed, uses=uses)
    return Losses([several], [several if added is removed else replace(added, uses=uses)])


# These take most of an evaluation's time, and calibration, plan and path ask for the same ones.
@lru_cache(maxsize=8)
def _losses_of_one(sigma: float, sample_rate: float, relation: Any) -> tuple[Part, Part]:
    """Return the losses of one use for a removed and for an added unit: the same object if the two agree."""
    found = pld.from_gaussian_mechanism(
        sigma,
        value_discretization_interval=DISCRETISATION,
        sampling_prob=sample_rate,
        neighboring_relation=relation,
    )
    removed = _part(found._pmf_remove)
    return removed, removed if found._symmetric else _part(found._pmf_add)


def _part(pmf: Any) -> Part:
    dense = pmf.to_dense_pmf()
    return Part(DISCRETISATION, int(dense._lower_loss), dense._probs, float(dense._infinity_mass))


def compose(parts: Iterable[Losses]) -> Losses:
    """Return the privacy losses of all `parts` together."""
    total = Losses([], [])
    for part in parts:
        total = total.compose(part)
    return total


def epsilon_of_losses(total: Losses, delta: float) -> float:
    """Return the smallest ε, from above, of composed privacy losses at `delta`."""
    check_delta(delta)
    return _finite(total.get_epsilon_for_delta(delta), "PLD")


def check_delta(delta: float) -> None:
    """Raise AccountingError for a δ at which accountants return infinity, an error or wrong digits."""
    if not (isinstance(delta, int | float) and MIN_DELTA <= delta < 1):
        raise AccountingError(
            f"δ is {delta!r}: must be at least {MIN_DELTA:g} (below it, truncated tails affect ε) and below 1"
        )


def check_affordable(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Return ε by RDP. Raises AccountingError if it is so large that loss distributions would fill the memory."""
    rough = epsilon_rdp(events, delta)
    if rough > MAX_EPSILON_RDP:
        names = ", ".join(dict.fromkeys(event.name for event in events))
        raise AccountingError(
            f"{names} cost more than ε = {MAX_EPSILON_RDP:g} by RDP, which protects nobody: use a "
            "higher noise_multiplier, a lower sample rate or fewer events"
        )
    return rough


def _finite(value: float, method: str) -> float:
    if not math.isfinite(value):
        raise AccountingError(
            f"{method} finds no finite ε: use a higher noise_multiplier, fewer events or a larger δ"
        )
    return max(0.0, value)


def _library_event(event: PrivacyEvent) -> Any:
    one_use = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sample_rate == 1:
        return one_use
    return dp_accounting.PoissonSampledDpEvent(event.sample_rate, one_use)


def _history(events: Sequence[PrivacyEvent]) -> list[tuple[float, float, int]]:
    """Return the events as Opacus's (noise multiplier, sample rate, steps)."""
    return [(r.noise_multiplier, r.sample_rate, r.count) for r in events if r.count]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about RDP orders that are left out: without them ε is larger, never wrong."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(before)
