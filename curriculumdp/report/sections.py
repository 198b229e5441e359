"""A report's public sections (budget, costs, samples, small print), made from the release folder alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from curriculumdp.diffusion.pictures import GAP
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.released import Released
from curriculumdp.phases import PHASE_NAMES, title_of
from curriculumdp.plots import curve_plot, png_bytes
from curriculumdp.privacy.accountant import epsilon_path
from curriculumdp.privacy.detection import ALARMS, at_most, detection_bound
from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import CertifiedEvent, Guarantee, statement
from curriculumdp.release.files import CENTRAL, CERTIFICATE, FREQUENCY, WEIGHTS, file_sha256
from curriculumdp.report.page import Html, columns, facts, html, paragraph, picture, section, table, tag

MAX_STRIPS = 20  # with more classes, samples are shown as one picture
PATH_POINTS = 6
ORDER: dict[str, int] = {name: place for place, name in enumerate(PHASE_NAMES)}
COLOURS = {"central": "easy", "frequency": "middle", "private": "hard"}  # classes of report.css
SMALL_PRINT = {
    "adjacency": "adjacency",
    "public": "treated as public",
    "conditional_on": "conditional on",
    "private_metrics": "private metrics",
    "stopped": "how the run ended",
    "scope": "covers",
    "proof": "what can be checked",
}


def guarantee_section(released: Released) -> Html:
    """Return the section on the guarantee, in words and in numbers."""
    promised, cost = released.certificate.guarantee, released.certificate.accounting
    stated = statement(promised, cost)
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
        paragraph(tag("strong", stated["guarantee"])),
        columns(facts(rows), _meaning(promised)),
        tag("h3", "The small print"),
        facts([(name, stated[key]) for key, name in SMALL_PRINT.items()]),
    )


def _meaning(promised: Guarantee) -> Html:
    found = detection_bound([row.event for row in promised.events], promised.epsilon, ALARMS)
    rows = [(f"{alarms:.1%}", at_most(rate)) for alarms, rate in zip(ALARMS, found, strict=True)]
    return tag(
        "div",
        paragraph(
            "What that means: someone who knows every other unit examines this release and guesses whether "
            "one unit was in the data. Whatever method they use:"
        ),
        table(["false alarms", "detected, at most"], rows),
        tag("p", "A worst-case bound, computed from the events below.", class_="note"),
    )


@dataclass(frozen=True)
class Spending:
    """ε over the run: `path` lists (events so far, ε); `ends`, by phase in order, (events, ε) once it is done."""

    path: Sequence[tuple[int, float]]
    ends: Mapping[str, tuple[int, float]]
    promised: float

    @property
    def total(self) -> float:
        return self.path[-1][1]


def spending(promised: Guarantee) -> Spending:
    """Recompute how the budget was spent from the certificate's events. Takes seconds."""
    # Phases are spent in their order, in whatever order the certificate lists the events.
    rows = sorted(promised.events, key=lambda row: ORDER.get(row.name, len(ORDER)))
    ends = dict(zip((row.name for row in rows), accumulate(row.count for row in rows), strict=True))
    total = sum(row.count for row in rows)
    first = max((end for end in ends.values() if end < total), default=0)
    points = (first + (total - first) * part // PATH_POINTS for part in range(PATH_POINTS))
    done = sorted({0, total, *ends.values(), *points})
    found = epsilon_path([row.event for row in rows], done, promised.delta)
    at = dict(zip(done, found, strict=True))
    return Spending(tuple(at.items()), {name: (end, at[end]) for name, end in ends.items()}, promised.epsilon)


def budget_section(released: Released) -> Html:
    """Return the section on how the phases spent the budget, with a picture and a table."""
    spent = spending(released.certificate.guarantee)
    costs = [0.0, *(cost for _, cost in spent.ends.values())]
    parts = [
        (COLOURS.get(name, "hard"), title_of(name) + (" on top of that" if before else ""), after - before)
        for name, before, after in zip(spent.ends, costs, costs[1:], strict=False)
    ]
    parts.append(("left", "not spent", max(0.0, spent.promised - spent.total)))
    shown = [part for part in parts if part[2] >= spent.promised / 1000]
    label = ", ".join(f"{name}: ε {_part(kind, cost)}" for kind, name, cost in shown)
    bar = tag(
        "div",
        *(Html(f'<i class="{kind}" style="flex:{cost:.6f}"></i>') for kind, _, cost in shown),
        class_="bar", role="img", aria_label=f"the budget of {rounded_up(spent.promised)}: {label}",
    )  # fmt: skip
    key = tag(
        "ul",
        *(tag("li", tag("i", class_=kind), f"{name}: ε {_part(kind, cost)} ({cost / spent.promised:.0%})")
          for kind, name, cost in shown),
        class_="key",
    )  # fmt: skip
    plot = curve_plot(_path_of_phases(spent), "queries and steps so far", "ε spent")
    return section(
        "Where the budget went",
        bar,
        key,
        columns(
            _event_table(released.certificate.guarantee.events),
            picture(plot, f"ε grows with the steps, from 0 to {rounded_up(spent.total)}", "ε over the run."),
        ),
        tag(
            "p",
            "Training on central or frequency images, sampling and anything else done with the noisy results costs "
            "nothing more. "
            "Costs do not simply add up: the private phase alone would cost more than its part here.",
            class_="note",
        ),
    )


def _path_of_phases(spent: Spending) -> dict[str, list[tuple[int, float]]]:
    """Return the part of the path in each phase, by title, the last phase first, which gives each its colour."""
    starts = [0, *(end for end, _ in spent.ends.values())]
    paths = {
        title_of(name): [(uses, cost) for uses, cost in spent.path if start <= uses <= end]
        for (name, (end, _)), start in zip(spent.ends.items(), starts, strict=False)
    }
    return {title: path for title, path in reversed(paths.items()) if len(path) > 1}


def _part(kind: str, epsilon: float) -> str:
    """Return a part of the budget as text: what was spent is rounded up, what is left is not."""
    return f"{epsilon:.3g}" if kind == "left" else rounded_up(epsilon, 3)


def _event_table(rows: Sequence[CertifiedEvent]) -> Html:
    head = ["event", "rate q", "noise σ", "clip C", "count"]
    cells = [
        (title_of(row.name), f"{row.sample_rate:.4g}", f"{row.noise_multiplier:.4g}",
         f"{row.clip_norm:.4g}", row.count)
        for row in rows
    ]  # fmt: skip
    return table(head, cells, "Everything that was ever computed from the sensitive images")


def images_section(released: Released) -> Html:
    """Return the section of samples.png, one row per class, central.png and frequency.png where they are."""
    samples = _strips(_read_picture(released.folder / "samples.png"), released.class_names)
    parts = [tag("div", tag("h3", "Samples, one class per row"), samples)]
    central, frequency = released.folder / CENTRAL, released.folder / FREQUENCY
    if central.is_file():
        grid = picture(
            png_bytes(_read_picture(central)),
            f"noisy averages of random subsets of the images, {released.classes} classes side by side",
            "What the warm-up trains on: noisy aggregates, covered by the same guarantee.",
            "pixels",
        )
        parts.append(tag("div", tag("h3", "Central images"), grid))
    if frequency.is_file():
        strips = _strips(_read_picture(frequency), released.class_names)
        note = tag(
            "p", "The warm-up trains on them: drawn from a generator that was fitted to a noisy embedding."
        )
        parts.append(tag("div", tag("h3", "Frequency images, one class per row"), strips, note))
    return section("Images", columns(*parts))


def _read_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            opened.load()
            return opened.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise EvaluationError(f"{path} cannot be read as a PNG: name a complete release") from None


def _strips(sheet: Image.Image, names: Sequence[str]) -> Html:
    width, height = sheet.size
    classes = len(names)
    step, rest = divmod(height - GAP, classes)
    if rest or classes > MAX_STRIPS:
        return picture(png_bytes(sheet), "synthetic images, one class per row", kind="pixels")
    rows = []
    for label, name in enumerate(names):
        strip = sheet.crop((0, label * step, width, (label + 1) * step + GAP))
        rows.append(picture(png_bytes(strip), f"synthetic images of class {name}", name, "pixels"))
    return tag("div", *rows, class_="classes")


def cost_facts(released: Released) -> list[tuple[str, object]]:
    """Return the run's planned work. PUBLIC, unlike the time it took, which depends on private batch sizes."""
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
        on = "central" if released.config.get("central") else "frequency"
        if on == "central" and warmup.get("frequency_steps"):
            on = f"central, then ({int(warmup['frequency_steps']):,}) on frequency"
        rows.append((f"steps on {on} images", f"{int(warmup['steps']):,}, {warmup['batch']} images each"))
    rows.append(("DP-SGD steps", f"{steps:,}"))
    if steps:
        rows.append(("units per step, expected", f"{expected / steps:,.0f} of {promised.public.units:,}"))
        rows.append(("draws per unit and step", str(draws)))
        rows.append(("network passes, expected", f"{expected * draws / 1e6:,.2f} million"))
    return rows


def _parameters(folder: Path) -> int:
    with safe_open(folder / WEIGHTS, framework="numpy") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - not a mapping
    total = 0
    for shape in sizes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def settings_section(released: Released) -> Html:
    """Return the section on the run's config, the versions and how to check the release."""
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
                paragraph(
                    "With curriculumdp installed, this recomputes ε and checks every file of the release:"
                ),
                paragraph(tag("code", "curriculumdp-verify RELEASE")),
                paragraph("SHA-256 of the certificate that this page was generated from:"),
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
