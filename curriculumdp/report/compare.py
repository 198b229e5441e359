"""Comparison of runs: ε, accuracy, FD, hours. PRIVATE wherever a run's folder has private metrics."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.disk import make_folder, require_writable, write_whole
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.record import frechet, private_folder, public_folder, read_record
from curriculumdp.evaluation.released import read_released
from curriculumdp.phases import DEFAULT_CURRICULUM
from curriculumdp.plots import scatter_panels
from curriculumdp.privacy.event import rounded_up
from curriculumdp.report.quality import read_metrics, seconds_by_phase

TABLE, PLOT, RECORD = "compare.csv", "compare.png", "compare.json"
NONE = "–"


@dataclass(frozen=True)
class RunFigures:
    """A run's metrics. accuracy: mean accuracy on real images, by classifier; fd, kid: means, None if not evaluated.

    network: the SHA-256 of the feature network; settings: the config without name and seed, equal in runs that
    repeat each other; hours: time spent in steps, None without the run's private folder; private: accuracy, FD and
    KID are against real images that were not declared public; distance: the name of `fd`, FD or FID. tested_on: the
    test set's origin, size and digest; majority: the accuracy of always answering its commonest class; balanced: as
    accuracy, the mean over the classes; effort: how many synthetic images, sets, and whether it was quick.
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
    tested_on: str | None = None
    majority: float | None = None
    balanced: Mapping[str, float] = field(default_factory=dict)
    effort: str | None = None


def read_run(run: Path) -> RunFigures:
    """Read the metrics of a finished run, evaluated or not. Raises EvaluationError or CertificateError, one line."""
    if not (run / "release").is_dir():
        raise EvaluationError(f"{run} has no release: name the folder of a finished run")
    released = read_released(run / "release")
    identity, config = released.identity(), released.config
    public = read_record(public_folder(run), identity)
    record = read_record(private_folder(run), identity) | public
    fidelity = record.get("fidelity")
    distance, fd = frechet(fidelity) if fidelity else ("FD", None)
    rows = read_metrics(run / "private")
    return RunFigures(
        name=released.name,
        phases="+".join(config.get("curriculum") or DEFAULT_CURRICULUM),
        epsilon=released.certificate.guarantee.epsilon,
        delta=released.certificate.guarantee.delta,
        accuracy={name: value["mean"] for name, value in record.get("utility", {}).items()},
        fd=fd["mean"] if fd else None,
        kid=fidelity["kid"]["mean"] if fidelity else None,
        network=fidelity["network"]["sha256"] if fidelity else None,
        hours=sum(seconds_by_phase(rows).values()) / 3600 if rows else None,
        settings=_without_name(config),
        private="fidelity" in record and "fidelity" not in public,
        distance=distance,
        **_test_of(record),
    )


def _test_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says about its test set and effort; nothing without a record."""
    if "real" not in record:
        return {}
    real, synthetic = record["real"], record["synthetic"]
    utility = record.get("utility", {})
    return {
        "tested_on": f"{real['origin']}, {real['images']} images, sha256 {real['sha256'][:12]}",
        "majority": real.get("majority"),
        "balanced": {name: one["balanced"]["mean"] for name, one in utility.items() if "balanced" in one},
        "effort": f"{synthetic['seeds']} x {synthetic['images']} images"
        + (", quick" if synthetic.get("quick") else ""),
    }


def comparable(runs: Sequence[RunFigures]) -> list[RunFigures]:
    """Return the runs, without FD and KID if these come from different networks.

    Raises EvaluationError for runs that were tested on different sets: their accuracies have no common measure.
    """
    sets = {run.tested_on: run.name for run in reversed(runs) if run.tested_on}
    if len(sets) > 1:
        named = "; ".join(
            f"{name} on {tested}" for tested, name in sorted(sets.items(), key=lambda one: one[1])[:3]
        )
        raise EvaluationError(
            f"these runs were tested on different sets ({named}): compare those of one test set at a time, or evaluate "
            "them all on one"
        )
    if _networks(runs) > 1:
        return [replace(run, fd=None, kid=None) for run in runs]
    return list(runs)


def _networks(runs: Sequence[RunFigures]) -> int:
    return len({run.network for run in runs if run.network})


def _without_name(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in ("name", "seed")}
    return json.dumps(kept, sort_keys=True, default=str)


def table(runs: Sequence[RunFigures]) -> list[list[str]]:
    """Return a head and rows of text, plus a row of mean ± deviation for runs that differ only in name and seed."""
    distance, runs = _distance(runs), comparable(runs)
    classifiers = _classifiers(runs)
    balanced = [name for name in classifiers if any(name in run.balanced for run in runs)]
    head = [
        "run",
        "phases",
        "ε",
        "δ",
        *(f"{name}, %" for name in classifiers),
        *(f"{name} balanced, %" for name in balanced),
        distance,
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
            *(_shown(run.balanced.get(name), 100, 1) for name in balanced),
            _shown(run.fd, 1, 2),
            _shown(run.kid, 1, 4),
            _shown(run.hours, 1, 2),
        ]
        for run in runs
    ]
    return [head, *rows, *_repeats(runs, classifiers, balanced)]


def _classifiers(runs: Sequence[RunFigures]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.accuracy))


def _distance(runs: Sequence[RunFigures]) -> str:
    """Return FID if every evaluated run has it, else FD: an FID is an FD but not vice versa."""
    return "FID" if {run.distance for run in runs if run.fd is not None} == {"FID"} else "FD"


def _shown(value: float | None, scale: float, digits: int) -> str:
    return NONE if value is None else f"{value * scale:.{digits}f}"


def _repeats(
    runs: Sequence[RunFigures], classifiers: Sequence[str], balanced: Sequence[str]
) -> list[list[str]]:
    groups: dict[str, list[RunFigures]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    rows = []
    for group in groups.values():
        if len(group) > 1:
            first = group[0]
            rows.append(
                [
                    f"mean of {len(group)} runs like {first.name}",
                    first.phases,
                    rounded_up(first.epsilon),
                    rounded_up(first.delta),
                    *(_mean([run.accuracy.get(name) for run in group], 100, 1) for name in classifiers),
                    *(_mean([run.balanced.get(name) for run in group], 100, 1) for name in balanced),
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
    """Return a table as text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def remarks(runs: Sequence[RunFigures]) -> list[str]:
    """Return the remarks that a reader of the table needs, one per line."""
    lines = []
    if _networks(runs) > 1:
        lines.append(f"{_distance(runs)} and KID are left out: they come from different feature networks")
    efforts = sorted({run.effort for run in runs if run.effort})
    if len(efforts) > 1:
        lines.append(f"the evaluations differ ({'; '.join(efforts)}), and with them the figures")
    if majority := next((run.majority for run in runs if run.majority is not None), None):
        lines.append(f"always answering the test set's commonest class would score {majority:.1%}")
    private = [run.name for run in runs if run.private]
    if private:
        lines.append(
            f"accuracy, {_distance(runs)} and KID of {', '.join(private)} are PRIVATE: the real images are not public"
        )
    if any(run.hours is not None for run in runs):
        lines.append("hours are PRIVATE: times reveal how many units were in the steps")
    return lines


def plot(runs: Sequence[RunFigures]) -> bytes:
    """Plot accuracy and FD against ε, and accuracy against hours, as PNG; panels without points are omitted."""
    distance, runs = _distance(runs), comparable(runs)
    names = _classifiers(runs)
    last = names[-1] if names else ""
    accuracy = [(run, run.accuracy[last] * 100) for run in runs if last in run.accuracy]
    panels = [
        ("ε", f"accuracy of {last}, %", [(run.name, run.epsilon, value) for run, value in accuracy]),
        ("ε", distance, [(run.name, run.epsilon, run.fd) for run in runs if run.fd is not None]),
        (
            "hours",
            f"accuracy of {last}, %",
            [(run.name, run.hours, value) for run, value in accuracy if run.hours is not None],
        ),
    ]
    filled = [panel for panel in panels if panel[2]]
    if not filled:
        raise EvaluationError(
            "none of these runs was evaluated: run launch/evaluate.py on each of them first"
        )
    return scatter_panels(filled)


def require_place(out: Path) -> None:
    """Raise OutputError unless `write_comparison` can write to `out`."""
    require_writable(out, folder=True)
    for name in (TABLE, RECORD, PLOT):
        require_writable(out / name)


def write_comparison(runs: Sequence[RunFigures], out: Path) -> list[Path]:
    """Write compare.csv, compare.json and compare.png to `out` and return their paths."""
    png = plot(runs)
    make_folder(out)
    buffer = io.StringIO()
    csv.writer(buffer).writerows(table(runs))
    write_whole(out / TABLE, buffer.getvalue().encode(), mode=0o666)
    metrics = [
        {key: value for key, value in vars(run).items() if key != "settings"}
        | {"accuracy": dict(run.accuracy), "balanced": dict(run.balanced)}
        for run in runs
    ]
    record = {"remarks": remarks(runs), "runs": metrics}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / RECORD, text.encode(), mode=0o666)
    write_whole(out / PLOT, png, mode=0o666)
    return [out / TABLE, out / RECORD, out / PLOT]
