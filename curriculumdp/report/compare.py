"""Runs side by side: ε, accuracy, FD, hours. PRIVATE wherever a run's folder holds private figures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.disk import write_whole
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.record import frechet, private_folder, public_folder, read_record
from curriculumdp.evaluation.released import read_released
from curriculumdp.phases import PHASE_NAMES
from curriculumdp.plots import scatter_panels
from curriculumdp.privacy.event import rounded_up
from curriculumdp.report.figures import read_metrics, seconds_by_phase

TABLE, PLOT, RECORD = "compare.csv", "compare.png", "compare.json"
NONE = "–"


@dataclass(frozen=True)
class RunFigures:
    """One run. accuracy: mean share of real images right, by classifier; fd, kid: means, None if not evaluated.

    network: the SHA-256 of the feature network; settings: the config without name and seed, equal in runs that
    are repeats of each other; hours: time spent in steps, None without the run's private folder; private: accuracy, FD
    and KID are against real images that nobody declared public; distance: what `fd` may be called, FD or FID.
    """

    name: str
    phases: str
    epsilon: float
    delta: float
    accuracy: Mapping[str, float]
    fd: float | None
    kid: float | None
    network: str | None
    hours: float | None
    settings: str
    private: bool = False
    distance: str = "FD"


def read_run(run: Path) -> RunFigures:
    """The figures of a finished run, evaluated or not. Raises EvaluationError or CertificateError, one line."""
    if not (run / "release").is_dir():
        raise EvaluationError(f"{run} has no release: name folders of finished runs")
    released = read_released(run / "release")
    identity, config = released.identity(), released.config
    public = read_record(public_folder(run), identity)
    record = read_record(private_folder(run), identity) | public
    fidelity = record.get("fidelity")
    distance, fd = frechet(fidelity) if fidelity else ("FD", None)
    rows = read_metrics(run / "private")
    return RunFigures(
        name=released.name,
        phases="+".join(config.get("curriculum") or PHASE_NAMES),
        epsilon=released.certificate.guarantee.epsilon,
        delta=released.certificate.guarantee.delta,
        accuracy={name: value["mean"] for name, value in record.get("utility", {}).items()},
        fd=fd["mean"] if fd else None,
        kid=fidelity["kid"]["mean"] if fidelity else None,
        network=fidelity["network"]["sha256"] if fidelity else None,
        hours=sum(seconds_by_phase(rows).values()) / 3600 if rows else None,
        settings=_without_name(config),
        private="utility" in record and "utility" not in public,
        distance=distance,
    )


def _without_name(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in ("name", "seed")}
    return json.dumps(kept, sort_keys=True, default=str)


def table(runs: Sequence[RunFigures]) -> list[list[str]]:
    """Head and rows of text. Runs that differ in name and seed alone get one more row, mean ± deviation."""
    classifiers = _classifiers(runs)
    head = [
        "run",
        "phases",
        "ε",
        "δ",
        *(f"{name}, %" for name in classifiers),
        _distance(runs),
        "KID",
        "hours",
    ]
    rows = [
        [
            run.name,
            run.phases,
            rounded_up(run.epsilon),
            rounded_up(run.delta),
            *(_shown(run.accuracy.get(name), 100, 1) for name in classifiers),
            _shown(run.fd, 1, 2),
            _shown(run.kid, 1, 4),
            _shown(run.hours, 1, 2),
        ]
        for run in runs
    ]
    return [head, *rows, *_repeats(runs, classifiers)]


def _classifiers(runs: Sequence[RunFigures]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.accuracy))


def _distance(runs: Sequence[RunFigures]) -> str:
    """FID where every run that was evaluated has it: an FID is an FD, not the other way round."""
    return "FID" if {run.distance for run in runs if run.fd is not None} == {"FID"} else "FD"


def _shown(value: float | None, scale: float, digits: int) -> str:
    return NONE if value is None else f"{value * scale:.{digits}f}"


def _repeats(runs: Sequence[RunFigures], classifiers: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[RunFigures]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    rows = []
    for group in groups.values():
        if len(group) > 1:
            first = group[0]
            rows.append(
                [
                    f"mean of {len(group)} like {first.name}",
                    first.phases,
                    rounded_up(first.epsilon),
                    rounded_up(first.delta),
                    *(_mean([run.accuracy.get(name) for run in group], 100, 1) for name in classifiers),
                    _mean([run.fd for run in group], 1, 2),
                    _mean([run.kid for run in group], 1, 4),
                    _mean([run.hours for run in group], 1, 2),
                ]
            )
    return rows


def _mean(values: Sequence[float | None], scale: float, digits: int) -> str:
    found = [value * scale for value in values if value is not None]
    if len(found) < len(values):
        return NONE
    return f"{np.mean(found):.{digits}f} ± {np.std(found, ddof=1):.{digits}f}"


def text_of(rows: Sequence[Sequence[str]]) -> str:
    """A table in columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def remarks(runs: Sequence[RunFigures]) -> list[str]:
    """What a reader of the table must know."""
    lines = []
    if len({run.network for run in runs if run.network}) > 1:
        lines.append(
            f"{_distance(runs)} and KID were measured in different networks: those columns cannot be compared"
        )
    private = [run.name for run in runs if run.private]
    if private:
        lines.append(
            f"accuracy, {_distance(runs)} and KID of {', '.join(private)} are PRIVATE: real images that are not public"
        )
    if any(run.hours is not None for run in runs):
        lines.append("hours are PRIVATE: times show how many units were in the steps")
    return lines


def plot(runs: Sequence[RunFigures]) -> bytes:
    """PNG: accuracy and FD against ε, accuracy against hours; panels without a point are left out."""
    names = _classifiers(runs)
    strongest = names[-1] if names else ""
    accuracy = [(run, run.accuracy[strongest] * 100) for run in runs if strongest in run.accuracy]
    panels = [
        ("ε", f"accuracy of {strongest}, %", [(run.name, run.epsilon, value) for run, value in accuracy]),
        ("ε", _distance(runs), [(run.name, run.epsilon, run.fd) for run in runs if run.fd is not None]),
        (
            "hours",
            f"accuracy of {strongest}, %",
            [(run.name, run.hours, value) for run, value in accuracy if run.hours is not None],
        ),
    ]
    drawn = [panel for panel in panels if panel[2]]
    if not drawn:
        raise EvaluationError(
            "none of these runs was evaluated: run launch/evaluate.py on each of them first"
        )
    return scatter_panels(drawn)


def write_comparison(runs: Sequence[RunFigures], out: Path) -> list[Path]:
    """The paths of compare.csv, compare.json and compare.png in `out`."""
    drawn = plot(runs)
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    csv.writer(buffer).writerows(table(runs))
    write_whole(out / TABLE, buffer.getvalue().encode(), mode=0o666)
    figures = [
        {key: value for key, value in vars(run).items() if key != "settings"}
        | {"accuracy": dict(run.accuracy)}
        for run in runs
    ]
    whole = {"remarks": remarks(runs), "runs": figures}
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / RECORD, text.encode(), mode=0o666)
    write_whole(out / PLOT, drawn, mode=0o666)
    return [out / TABLE, out / RECORD, out / PLOT]
