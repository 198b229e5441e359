"""The parts of a report that say only what is public: made from the release folder and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from curriculumdp.diffusion.pictures import GAP
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.released import Released
from curriculumdp.phases import title_of
from curriculumdp.plots import curve_plot, png_bytes
from curriculumdp.privacy.accountant import compose, epsilon_path, losses
from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import CertifiedEvent, Guarantee, statement
from curriculumdp.release.verify import CERTIFICATE, WEIGHTS, file_sha256
from curriculumdp.report.page import Html, columns, facts, html, paragraph, picture, section, table, tag

ALARMS = (0.001, 0.01, 0.1)  # false alarm rates
MAX_STRIPS = 20  # classes whose samples get a row of their own
PATH_POINTS = 6
CURVE_POINTS = 60
SMALL_PRINT = {
    "adjacency": "neighbours",
    "public": "taken as public",
    "conditional_on": "conditional on",
    "private_metrics": "private figures",
    "stopped": "how it ended",
    "scope": "covers",
    "proof": "what can be checked",
}


def detection_bound(promised: Guarantee, alarms: Sequence[float]) -> list[float]:
    """The most that any test of a unit's presence can detect, one rate for each false alarm rate α.

    The least of e^ε·α + δ(ε) and 1 − e^−ε·(1 − δ(ε) − α) over the whole curve δ(ε) of the events (Kairouz et
    al. 2015, theorem 2.1), which is tighter than at the promised pair alone. Takes seconds.
    """
    total = compose([losses(row.event) for row in promised.events])
    epsilons = np.linspace(0.0, 2 * promised.epsilon, CURVE_POINTS)
    deltas = np.array([total.get_delta_for_epsilon(epsilon) for epsilon in epsilons])
    growth = np.exp(np.minimum(epsilons, 700.0))  # beyond e^700 a float ends
    return [
        float(np.minimum(growth * rate + deltas, 1 - (1 - deltas - rate) / growth).clip(0, 1).min())
        for rate in alarms
    ]


def guarantee_section(released: Released) -> Html:
    """The guarantee in words and in numbers."""
    promised, cost = released.certificate.guarantee, released.certificate.accounting
    said = statement(promised, cost)
    rows: list[tuple[str, object]] = [
        ("promised ε", rounded_up(promised.epsilon)),
        ("δ", rounded_up(promised.delta)),
        ("what is protected", promised.unit),
        (f"ε by {cost.accountant}", rounded_up(cost.epsilon_of_events)),
        (f"ε by Opacus {cost.opacus}, RDP", rounded_up(cost.opacus_rdp)),
    ]
    if cost.opacus_prv is not None:
        low, middle, high = map(rounded_up, cost.opacus_prv)
        rows.append((f"ε by Opacus {cost.opacus}, PRV", f"{middle} ({low} to {high})"))
    if cost.epsilon_replace_one is not None:
        rows.append(("ε under replace-one", rounded_up(cost.epsilon_replace_one)))
    return section(
        "What is guaranteed",
        paragraph(tag("strong", said["guarantee"])),
        columns(facts(rows), _meaning(promised)),
        tag("h3", "The small print"),
        facts([(name, said[key]) for key, name in SMALL_PRINT.items()]),
    )


def _meaning(promised: Guarantee) -> Html:
    found = detection_bound(promised, ALARMS)
    rows = [(f"{alarms:.1%}", _at_most(rate)) for alarms, rate in zip(ALARMS, found, strict=True)]
    return tag(
        "div",
        paragraph(
            "What that means: someone who knows every other unit looks at this release and guesses whether "
            "one unit was in the data. However they go about it:"
        ),
        table(["false alarms", "recognised, at most"], rows),
        tag("p", "A bound for the worst case, computed from the events below.", class_="note"),
    )


def _at_most(rate: float) -> str:
    return "nearly all" if rate > 0.999 else f"{rate:.1%}"


@dataclass(frozen=True)
class Spending:
    """ε along the run: `path` has (events made, ε); `central` is what the central phase cost alone."""

    path: Sequence[tuple[int, float]]
    central: float
    total: float
    promised: float


def spending(promised: Guarantee) -> Spending:
    """How the budget went, recomputed from the certificate's events; takes seconds."""
    rows = promised.events
    easy = sum(row.count for row in rows if row.name == "central")
    whole = sum(row.count for row in rows)
    points = (easy + (whole - easy) * part // PATH_POINTS for part in range(PATH_POINTS))
    done = sorted({0, easy, whole, *points})
    # The first phase is spent first, in whatever order the certificate lists the events.
    ordered = sorted(rows, key=lambda row: row.name != "central")
    found = epsilon_path([row.event for row in ordered], done, promised.delta)
    at = dict(zip(done, found, strict=True))
    return Spending(tuple(at.items()), at[easy], at[whole], promised.epsilon)


def budget_section(released: Released) -> Html:
    """Both phases' share of the budget, as a picture and as a table."""
    spent = spending(released.certificate.guarantee)
    added, left = spent.total - spent.central, max(0.0, spent.promised - spent.total)
    parts = (
        ("easy", "central images", spent.central),
        ("hard", "DP-SGD on top of it" if spent.central else "DP-SGD", added),
        ("left", "not spent", left),
    )
    shares = [part for part in parts if part[2] >= spent.promised / 1000]
    label = ", ".join(f"{name}: ε {_part(kind, cost)}" for kind, name, cost in shares)
    bar = tag(
        "div",
        *(Html(f'<i class="{kind}" style="flex:{cost:.6f}"></i>') for kind, _, cost in shares),
        class_="bar", role="img", aria_label=f"the budget of {rounded_up(spent.promised)}: {label}",
    )  # fmt: skip
    key = tag(
        "ul",
        *(tag("li", tag("i", class_=kind), f"{name}: ε {_part(kind, cost)} ({cost / spent.promised:.0%})")
          for kind, name, cost in shares),
        class_="key",
    )  # fmt: skip
    turn = next(place for place, (_, cost) in enumerate(spent.path) if cost >= spent.central)
    phases = {"DP-SGD": spent.path[turn:], "central images": spent.path[: turn + 1]}
    plot = curve_plot(
        {name: path for name, path in phases.items() if len(path) > 1}, "queries and steps made", "ε spent"
    )
    return section(
        "Where the budget went",
        bar,
        key,
        columns(
            _release_table(released.certificate.guarantee.events),
            picture(
                plot, f"ε grows with the steps, from 0 to {rounded_up(spent.total)}", "ε as the run went on."
            ),
        ),
        tag(
            "p",
            "Training on central images, sampling and everything else that is done with what was released costs "
            "nothing more. Costs do not simply add up: the private phase alone would cost more than its share.",
            class_="note",
        ),
    )


def _part(kind: str, epsilon: float) -> str:
    """Return a share of the budget as text: what was spent is rounded up, what is left is not."""
    return f"{epsilon:.3g}" if kind == "left" else rounded_up(epsilon, 3)


def _release_table(rows: Sequence[CertifiedEvent]) -> Html:
    head = ["release", "rate q", "noise σ", "clip C", "times"]
    cells = [
        (title_of(row.name), f"{row.sample_rate:.4g}", f"{row.noise_multiplier:.4g}",
         f"{row.clip_norm:.4g}", row.count)
        for row in rows
    ]  # fmt: skip
    return table(head, cells, "All that was ever computed from the sensitive images")


def images_section(released: Released) -> Html:
    """samples.png, a row a class, and central.png where there is one."""
    samples = _strips(_read_picture(released.folder / "samples.png"), released.classes)
    parts = [tag("div", tag("h3", "Samples, one class a row"), samples)]
    central = released.folder / "central.png"
    if central.is_file():
        grid = picture(
            png_bytes(_read_picture(central)),
            f"noisy averages of random subsets of the images, {released.classes} classes side by side",
            "What the warm-up learns from: noisy aggregates, released under the same guarantee.",
            "pixels",
        )
        parts.append(tag("div", tag("h3", "Central images"), grid))
    return section("Images", columns(*parts))


def _read_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            opened.load()
            return opened.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise EvaluationError(f"{path} cannot be read as a PNG: name a whole release") from None


def _strips(sheet: Image.Image, classes: int) -> Html:
    width, height = sheet.size
    step, rest = divmod(height - GAP, classes)
    if rest or classes > MAX_STRIPS:
        return picture(png_bytes(sheet), "synthetic images, one class a row", kind="pixels")
    rows = []
    for place in range(classes):
        strip = sheet.crop((0, place * step, width, (place + 1) * step + GAP))
        rows.append(picture(png_bytes(strip), f"synthetic images of class {place}", str(place), "pixels"))
    return tag("div", *rows, class_="classes")


def cost_facts(released: Released) -> list[tuple[str, object]]:
    """What the run had to do, as planned: PUBLIC. How long that took depends on private batch sizes."""
    promised, training = released.certificate.guarantee, released.config["private"]
    draws = int(training["draws"])
    steps = sum(row.count for row in promised.events if row.name == "private")
    expected = sum(
        row.count * row.sample_rate * promised.public.units
        for row in promised.events
        if row.name == "private"
    )
    rows: list[tuple[str, object]] = [("parameters", f"{_parameters(released.folder):,}")]
    warmup = released.config.get("warmup")
    if warmup:
        rows.append(("steps on central images", f"{int(warmup['steps']):,}, {warmup['batch']} images each"))
    rows.append(("DP-SGD steps", f"{steps:,}"))
    if steps:
        rows.append(("units a step, expected", f"{expected / steps:,.0f} of {promised.public.units:,}"))
        rows.append(("draws a unit and step", str(draws)))
        rows.append(("network passes, expected", f"{expected * draws / 1e6:,.2f} million"))
    return rows


def _parameters(folder: Path) -> int:
    with safe_open(folder / WEIGHTS, framework="numpy") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - no mapping
    total = 0
    for shape in sizes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def settings_section(released: Released) -> Html:
    """The run's configuration, the versions, and how to check the release."""
    flat = list(_flattened(released.config))
    versions = sorted(released.certificate.versions.items())
    digest = file_sha256(released.folder / CERTIFICATE)
    return section(
        "Configuration and versions",
        columns(
            tag("div", tag("h3", "Versions"), facts(versions)),
            tag(
                "div",
                tag("h3", "Check it yourself"),
                paragraph("This recomputes ε and checks every file of the release:"),
                paragraph(tag("code", "python launch/verify.py RELEASE")),
                paragraph("SHA-256 of the certificate that this page was made from:"),
                paragraph(tag("code", digest)),
            ),
        ),
        tag("details", tag("summary", f"All {len(flat)} settings"), facts(flat)),
    )


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", html("–" if value is None else value)))
    return rows
