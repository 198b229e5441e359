"""A report's sections on quality: utility, fidelity and, PRIVATE, memorisation and training curves."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from curriculumdp.durations import duration
from curriculumdp.evaluation.record import (
    DISTANCES,
    MAX_CLASSES,
    NEIGHBOURS,
    UTILITY,
    figure,
    frechet,
    measures,
    percent,
)
from curriculumdp.phases import work_of
from curriculumdp.plots import curve_plot
from curriculumdp.report.page import Html, columns, facts, paragraph, picture, section, table, tag

PAUSE = 600.0  # seconds: a longer gap between two steps means that the run was stopped


def utility_section(record: Mapping[str, Any], plot: bytes) -> Html:
    """Return the section on classifiers trained on synthetic images and, where recorded, on real ones."""
    reference = record.get("reference", {}).get("utility", {})
    balanced = all("balanced" in value for value in record["utility"].values())  # not in older records
    head = [
        "classifier",
        "synthetic, %",
        *(["balanced, %"] if balanced else []),
        *(["real, %"] if reference else []),
    ]
    rows = [
        (
            name,
            percent(value),
            *([percent(value["balanced"])] if balanced else []),
            *([percent(reference[name])] if reference else []),
        )
        for name, value in record["utility"].items()
    ]
    spread = "" if record["synthetic"]["seeds"] == 1 else ", mean and standard deviation over seeds"
    return section(
        "Utility",
        paragraph(
            f"Classifiers trained on {record['synthetic']['images']:,} synthetic images alone, tested on "
            f"{record['real']['images']:,} real ones ({record['real']['origin']}): accuracy{spread}.{_majority(record)}"
        ),
        columns(
            tag("div", table(head, rows), _classifiers(record["utility"])),
            picture(plot, "accuracy by classifier: " + _spoken(record["utility"])),
        ),
        *([_per_class(record["utility"])] if balanced else []),
    )


def _majority(record: Mapping[str, Any]) -> str:
    quick = " A quick evaluation, for a first look." if record["synthetic"].get("quick") else ""
    if "majority" not in record["real"]:
        return quick
    return (
        f" Always answering the commonest class would score {record['real']['majority']:.1%}; balanced accuracy, the "
        f"mean over the classes, does not reward that.{quick}"
    )


def _per_class(utility: Mapping[str, Any]) -> Html:
    """Return the accuracy on each class by classifier."""
    classes = list(next(iter(utility.values()))["per_class"])[:MAX_CLASSES]
    rows = [
        (shown, *(_share(value["per_class"].get(shown)) for value in utility.values())) for shown in classes
    ]
    return table(["class", *(f"{name}, %" for name in utility)], rows, "Accuracy by class")


def _share(value: float | None) -> str:
    return "no test image" if value is None else f"{value * 100:.1f}"


def _spoken(utility: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {percent(value)} %" for name, value in utility.items())


def _classifiers(utility: Mapping[str, Any]) -> Html:
    return tag(
        "p", "; ".join(f"{name}: {value['classifier']}" for name, value in utility.items()), class_="note"
    )


def fidelity_section(record: Mapping[str, Any]) -> Html:
    """Return the section on how close synthetic images are to real ones in a named network."""
    found = record["fidelity"]
    reference = record.get("reference", {}).get("fidelity", {})
    head = ["measure", "synthetic"] + (["real training images"] if reference else []) + ["better if"]
    rows = [
        (title, figure(found[name]), *([f"{reference[name]:.3g}"] if reference else []),
         "lower" if name in ("fd", "fid", "kid") else "higher")
        for name, title in measures(found).items()
    ]  # fmt: skip
    network = found["network"]
    distance = (
        "FID is the Fréchet distance in the standard network"
        if "fid" in found
        else "FD is a Fréchet distance in this network, not FID"
    )
    return section(
        "Fidelity",
        paragraph(
            f"Against {found['compared_with']:,} real images, in the feature space of one network: "
            f"{network['name']}, trained on {network['trained_on']}."
        ),
        table(head, rows),
        tag(
            "p",
            f"{distance}; compare it only with values under the same network ",
            tag("code", network["sha256"][:16]),
            " and with the same numbers of images. KID does not depend on the numbers of images.",
            class_="note",
        ),
    )


def memorisation_section(record: Mapping[str, Any], folder: Path) -> Html:
    """Return the section on synthetic images and their nearest training images. PRIVATE."""
    found = record["memorisation"]
    quantiles = list(found["synthetic"]["quantiles"])
    rows = [
        (
            name.replace("_", "-"),
            *(f"{found[name]['quantiles'][q]:.4f}" for q in quantiles),
            f"{found[name]['copies']:.2%}",
            found[name]["identical"],
        )
        for name in ("synthetic", "held_out")
    ]
    title, direct = frechet(record["fidelity_to_training"])
    return section(
        "Memorisation",
        paragraph(
            f"{found['measure']}. A synthetic image is nearer than a held-out real one with "
            f"probability {found['nearer']:.2f}: 0.5 means no difference, 1 means copies. Blurred samples resemble "
            "averages of many training images, and such averages are near to many of them. "
            f"{title} against training images: {direct:.3g}."
        ),
        table(["images", *quantiles, "copies", "identical"], rows),
        columns(
            picture(
                (folder / NEIGHBOURS).read_bytes(),
                "synthetic images above their nearest training images",
                "Rows 1 and 2: the synthetic images nearest to the training set, above their nearest training "
                "images. Rows 3 and 4: the same for typical synthetic images.",
                "pixels",
            ),
            picture((folder / DISTANCES).read_bytes(), "histograms of the distance to the training set"),
        ),
    )


def read_metrics(private: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl, oldest first, skipping unreadable lines such as a torn last one. PRIVATE."""
    try:
        lines = (private / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            float(row["time"]), str(row["phase"]), int(row["step"])
        except (ValueError, TypeError, KeyError):
            continue
        rows.append(row)
    return rows


def seconds_by_phase(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds spent in each phase's steps, excluding stops. PRIVATE: times reveal batch sizes."""
    spent: dict[str, float] = {}
    for before, after in pairwise(rows):
        gap = after["time"] - before["time"]
        if 0 <= gap <= PAUSE:
            spent[after["phase"]] = spent.get(after["phase"], 0.0) + gap
    return spent


def curves_section(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Return the section on loss, gradient norm and realised batch size by step. PRIVATE."""
    phases: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:  # a replayed step counts once
        phases.setdefault(row["phase"], {})[row["step"]] = row
    plots = []
    for phase, key, ylabel in (
        ("warmup", "loss", "loss on central images"),
        ("private", "loss", "loss on sensitive images"),
        ("private", "norm", "median gradient norm of a unit"),
        ("private", "units", "units in the step"),
    ):
        points = [(step, row[key]) for step, row in sorted(phases.get(phase, {}).items()) if key in row]
        if len(points) > 1:
            plot = curve_plot({ylabel: points}, f"step of {work_of(phase)}", ylabel)
            ends = f"from {points[0][1]:.3g} to {points[-1][1]:.3g}"
            plots.append(picture(plot, f"{ylabel} by step, {ends}"))
    if not plots:
        return section("Training curves", paragraph("The run recorded no metrics."))
    excluded = sum(int(row.get("excluded", 0)) for row in phases.get("private", {}).values())
    return section(
        "Training curves",
        columns(*plots),
        paragraph(f"Units excluded because their gradient was not finite: {excluded}."),
    )


def time_facts(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Return how long each phase took. PRIVATE."""
    spent = seconds_by_phase(rows)
    counts = {phase: sum(row["phase"] == phase for row in rows) for phase in spent}
    lines = [
        (
            work_of(phase),
            f"{duration(seconds)} ({seconds / counts[phase]:.3g} s per step)",
        )
        for phase, seconds in spent.items()
    ]
    return facts([*lines, ("total", duration(sum(spent.values())))])


def utility_plot_of(folder: Path) -> bytes:
    """Return the bytes of an evaluation's utility.png."""
    return (folder / UTILITY).read_bytes()
