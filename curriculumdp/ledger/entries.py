"""The entries of a run's ledger, by `kind`.

| kind        | holds                                                                             |
|-------------|-----------------------------------------------------------------------------------|
| plan        | first and only once: the run's name, the MAC of its data, the caller's plan       |
| incarnation | number, fingerprint, why: from here on all keys are new                           |
| start       | nonce: a process started; what it is the first to charge is drawn under this nonce |
| charge      | phase, step, incarnation, sample_rate, noise_multiplier, clip_norm, sum_mac       |
| sealed      | reason: nothing comes after it                                                    |
"""

from collections.abc import Mapping

from curriculumdp.ledger.chain import canonical

VERSION = 2


def plan_entry(run: str, data: str, plan: Mapping[str, object]) -> dict[str, object]:
    """Return a ledger's first entry. `run`: the run's name; `data`: the MAC of its data."""
    return {"kind": "plan", "version": VERSION, "run": run, "data": data, "plan": dict(plan)}


def incarnation_entry(number: int, fingerprint: Mapping[str, object], why: str) -> dict[str, object]:
    """Return the entry with which incarnation `number` starts."""
    return {"kind": "incarnation", "number": number, "fingerprint": dict(fingerprint), "why": why}


def charge_entry(
    phase: str,
    step: int,
    incarnation: int | None,
    sample_rate: float,
    noise_multiplier: float,
    clip_norm: float,
    sum_mac: str,
) -> dict[str, object]:
    """Return the entry of one step's event. `sum_mac`: the MAC of its un-noised sum."""
    return {
        "kind": "charge",
        "phase": phase,
        "step": step,
        "incarnation": incarnation,
        "sample_rate": float(sample_rate),
        "noise_multiplier": float(noise_multiplier),
        "clip_norm": float(clip_norm),
        "sum_mac": sum_mac,
    }


def changed_fields(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the sorted names of the fields whose values differ. A missing field counts as None."""
    return [
        field
        for field in sorted({*before, *now})
        if canonical(before.get(field)) != canonical(now.get(field))
    ]
