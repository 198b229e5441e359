"""An audit of the DP-SGD phase: lower bounds on ε from attacks on the real training code, with a control.

INFORMATION IN ADDITION TO THE CERTIFICATE, NEVER ITS PROOF: a bound below the certificate's ε shows no fault, and
says nothing about faults that the same attack could not have detected. The record therefore also has the bounds of
the control, which is the same training without its noise, and of an ideal attack on noise as planned, halved and
missing.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.audit.bounds import Bounds, bounds_of_many_runs, bounds_of_one_run
from curriculumdp.audit.canaries import MIN_NOISE, Scores, log_ratio, many_runs, of_units, one_run
from curriculumdp.curriculum.run import Run
from curriculumdp.disk import require_writable, write_whole
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.plots import EASY, HARD, INK, QUIET, axes, figure_bytes
from curriculumdp.privacy.event import PrivacyEvent, rounded_up
from curriculumdp.privacy.secret import RunSecret

FORMAT = "curriculumdp audit 1"
RECORD, PLOT = "audit.json", "audit.png"
PUBLIC_WORDS = "Computed from the config and from canaries alone: no sensitive image was read. May be shared."
PRIVATE_WORDS = "PRIVATE: trained on the sensitive images, also without noise. Must not be shared."
WHAT_IT_IS = "Information in addition to the certificate, never its proof."
# The noise that an ideal attack is tried on, as a multiple of the planned noise.
FACTORS = {"as planned": 1.0, "halved": 0.5, "missing": 0.0}
REPEATS = 5  # the median of these is reported
KINDS = {"one_run": "one run", "many_runs": "many runs"}
OF_KIND = {"one_run": bounds_of_one_run, "many_runs": bounds_of_many_runs}


@dataclass(frozen=True)
class Request:
    """The size of an audit. canaries: in the one run; trials: the number of many runs; 0 skips that attack.

    significance: the allowed probability that a bound is wrong. with_data: the one run also trains on the run's own
    images, which makes all values private.
    """

    canaries: int
    trials: int
    significance: float = 0.05
    with_data: bool = False


def audit(
    run: Run, request: Request, say: Callable[[str], None], secrets: Iterator[RunSecret] | None = None
) -> dict[str, Any]:
    """Audit `run`'s plan on the run's device and return the record. PRIVATE if `request.with_data`, else PUBLIC.

    `secrets` is for tests that need the same secrets twice. Raises EvaluationError, one line.
    """
    if min(request.canaries, request.trials) < 0 or max(request.canaries, request.trials) == 0:
        raise EvaluationError("ask for at least one canary or one run; neither number may be negative")
    if not 0 < request.significance < 1:
        raise EvaluationError(f"the significance is {request.significance:g} but must be between 0 and 1")
    fresh = secrets or iter(RunSecret.create, None)
    attacked = run if request.with_data else of_units(run, max(1, request.canaries))
    attacks: dict[str, tuple[int, Callable[[bool], Scores]]] = {
        "one_run": (request.canaries, lambda noise: one_run(attacked, request.canaries, noise, next(fresh))),
        "many_runs": (request.trials, lambda noise: many_runs(run, fresh, request.trials, noise)),
    }
    audits = {}
    for kind, (count, attack) in attacks.items():
        if count:
            audits[kind] = _audited(kind, count, attack, run, request.significance, say)
    certificate = _certificate(run)
    return {
        "format": FORMAT,
        "what": WHAT_IT_IS,
        "privacy": PRIVATE_WORDS if request.with_data else PUBLIC_WORDS,
        "certificate": certificate,
        "confidence": 1 - request.significance,
        "audits": audits,
        "in_words": [line for kind in audits for line in in_words(kind, audits[kind], certificate)],
    }


def _audited(
    kind: str,
    count: int,
    attack: Callable[[bool], Scores],
    run: Run,
    significance: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run one attack with and without noise; return the bounds, accuracy and seconds of both, and ideal bounds."""
    event, delta = _audited_event(run), run.config.privacy.delta
    found: dict[str, Any] = {"count": count}
    for name, noise in (("noise_on", True), ("noise_off", False)):
        say(f"{KINDS[kind]}: {count} {'canaries' if kind == 'one_run' else 'runs'}, {name.replace('_', ' ')}")
        start = time.monotonic()
        scores = attack(noise)
        bounds = OF_KIND[kind](scores.ratios, scores.included, delta, significance)
        found[name] = asdict(bounds) | {
            "accuracy": float(((scores.ratios > 0) == scores.included).mean()),
            "seconds": round(time.monotonic() - start, 1),
        }
    found["ideal"] = {
        name: asdict(ideal_bounds(kind, count, event, factor, delta, significance))
        for name, factor in FACTORS.items()
    }
    return found


def ideal_bounds(
    kind: str, count: int, event: PrivacyEvent, factor: float, delta: float, significance: float
) -> Bounds:
    """Return the bounds of an ideal attack, which in each step sees the canary's presence plus `factor`·σ of noise.

    They are medians over simulations, which train nothing. PUBLIC.
    """
    rng = np.random.default_rng(0)
    spread = factor * event.noise_multiplier
    found = []
    for _ in range(REPEATS):
        included = rng.random(count) < 0.5 if kind == "one_run" else np.arange(count) % 2 == 0
        ratios = np.zeros(count)
        for _ in range(event.count):
            signal = included * (rng.random(count) < event.sample_rate) + spread * rng.standard_normal(count)
            ratios += log_ratio(signal, max(MIN_NOISE, spread), event.sample_rate)
        found.append(OF_KIND[kind](ratios, included, delta, significance))
    return Bounds(
        *(float(np.median([getattr(one, name) for one in found])) for name in ("plain", "gaussian"))
    )


def in_words(kind: str, found: dict[str, Any], certificate: dict[str, Any]) -> list[str]:
    """Return three sentences: what was shown, what the control showed, what could have been detected."""
    epsilon, what = certificate["epsilon"], KINDS[kind]
    on, off, ideal = found["noise_on"], found["noise_off"], found["ideal"]
    above = [name for name in ("plain", "gaussian") if on[name] > epsilon]
    shown = (
        "above the certificate's: look for a fault before releasing anything"
        if above
        else "not above the certificate's: no fault shown"
    )
    seen = [name for name in ("halved", "missing") if _best(ideal[name]) > epsilon]
    blind = [name for name in ("halved", "missing") if name not in seen]
    power = [f"would have detected noise that is {' or '.join(seen)}"] if seen else []
    power += [f"could not have detected noise that is {' or '.join(blind)}"] if blind else []
    return [
        f"{what}: the attack shows ε ≥ {on['plain']:.2f} (≥ {on['gaussian']:.2f} if the mechanism is Gaussian) "
        f"of the certificate's ε = {rounded_up(epsilon)}, {shown}.",
        f"{what}: without noise it shows ε ≥ {off['plain']:.2f} (≥ {off['gaussian']:.2f}): missing noise "
        f"{'was' if _best(off) > epsilon else 'WAS NOT'} detected.",
        f"{what}: an ideal attack of this size shows ε ≥ "
        + ", ".join(
            f"{ideal[name]['plain']:.2f} (≥ {ideal[name]['gaussian']:.2f}) {name}" for name in FACTORS
        )
        + f"; so at this ε it {' and '.join(power)}.",
    ]


def exceeded(record: dict[str, Any]) -> bool:
    """Return whether a bound with noise exceeds the certificate's ε."""
    return any(
        _best(found["noise_on"]) > record["certificate"]["epsilon"] for found in record["audits"].values()
    )


def _best(bounds: dict[str, float]) -> float:
    return max(bounds["plain"], bounds["gaussian"])


def _audited_event(run: Run) -> PrivacyEvent:
    planned = run.plan.phase("private").event
    assert planned is not None  # DP-SGD is always charged
    return planned


def _certificate(run: Run) -> dict[str, Any]:
    """Return what the run's certificate would state, and the event of it that is attacked."""
    audited = asdict(_audited_event(run)) | {"epsilon_alone": run.plan.phase("private").epsilon_alone}
    return {
        "epsilon": run.plan.epsilon,
        "delta": run.plan.delta,
        "accountant": run.plan.accountant,
        "audited": audited,
    }


def audit_folder(out: Path, private: bool) -> Path:
    """Return where an audit of a run in `out` is written. Raises OutputError if that is impossible."""
    folder = out / "private" / "audit" if private else out / "audit"
    require_writable(folder, folder=True)
    for name in (RECORD, PLOT):
        require_writable(folder / name)
    return folder


def write_audit(record: dict[str, Any], out: Path) -> Path:
    """Write audit.json and audit.png to OUT/audit, or OUT/private/audit (mode 0700) if private; return that folder."""
    private = record["privacy"] == PRIVATE_WORDS
    folder = audit_folder(out, private)
    for path in (folder.parent, folder) if private else (folder,):
        path.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RECORD, text.encode(), mode=0o666)
    write_whole(folder / PLOT, audit_plot(record), mode=0o666)
    return folder


def audit_plot(record: dict[str, Any]) -> bytes:
    """Plot each audit's bounds with noise, without noise and of an ideal attack, and the certificate's ε, as PNG."""
    figure, plot = axes(f"ε at δ = {rounded_up(record['certificate']['delta'])}", "")
    names: list[str] = []
    for kind, found in record["audits"].items():
        for bound in ("plain", "gaussian"):
            height = -len(names)
            names.append(f"{KINDS[kind]}, {'any mechanism' if bound == 'plain' else 'Gaussian'}")
            first = len(names) == 1
            for key, colour, label in (
                ("noise_on", HARD, "with noise"),
                ("noise_off", EASY, "without noise"),
            ):
                plot.scatter(
                    found[key][bound], height, color=colour, zorder=3, label=label if first else None
                )
            ideal = [found["ideal"][name][bound] for name in ("as planned", "missing")]
            plot.plot(
                ideal,
                [height, height],
                color=QUIET,
                linewidth=5,
                alpha=0.4,
                label="ideal: noise to none" if first else None,
            )
    plot.axvline(record["certificate"]["epsilon"], color=INK, linewidth=1.2, label="certificate")
    plot.set_yticks([-row for row in range(len(names))], names)
    plot.set_ylim(0.6 - len(names), 0.6)
    plot.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle("Lower bounds on ε. " + WHAT_IT_IS, fontsize=8, color=INK)
    return figure_bytes(figure)
