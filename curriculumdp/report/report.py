"""A run as one HTML file, in two editions.

The public edition is a function of the release folder and of an evaluation against public images. Nothing under
`private/` is opened for it, so it is post-processing of differentially private results. It omits how long the run
took, because times reveal private batch sizes. The private edition contains everything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curriculumdp.disk import require_writable, write_whole
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.record import percent, private_folder, public_folder, read_record
from curriculumdp.evaluation.released import Released, read_released
from curriculumdp.privacy.event import rounded_up
from curriculumdp.report.page import Html, document, facts, paragraph, section, tag
from curriculumdp.report.quality import (
    curves_section,
    fidelity_section,
    memorisation_section,
    read_metrics,
    time_facts,
    utility_plot_of,
    utility_section,
)
from curriculumdp.report.sections import (
    budget_section,
    cost_facts,
    guarantee_section,
    images_section,
    settings_section,
)

PUBLIC_NAME, PRIVATE_NAME = "report_public.html", "report.html"
PUBLIC_WORDS = "Public edition: contains only what is differentially private or already public"
PRIVATE_WORDS = "Private edition: computed from sensitive images without noise; must not be shared"


def write_reports(run: Path) -> list[Path]:
    """Write RUN/report_public.html and, if RUN/private exists, RUN/private/report.html (mode 0600).

    Returns their paths. Raises EvaluationError or CertificateError, one line.
    """
    if not (run / "release").is_dir():
        raise EvaluationError(
            f"{run} has no release yet: finish the run, or export it with launch/export.py RUN --out DIR --end-run"
        )
    written = [run / PUBLIC_NAME]
    require_writable(written[0])
    if (run / "private").is_dir():
        require_writable(run / "private" / PRIVATE_NAME)
    page = public_report(run / "release", public_folder(run))
    write_whole(written[0], page.encode(), mode=0o666)
    if (run / "private").is_dir():
        path = run / "private" / PRIVATE_NAME
        write_whole(path, private_report(run).encode())
        written.append(path)
    return written


def public_report(release: Path, evaluation: Path) -> str:
    """Return the public edition. PUBLIC, provided that the metrics in `evaluation` are."""
    released = read_released(release)
    record = read_record(evaluation, released.identity())
    return document(
        f"{released.name}: public report",
        _header(released, record, PUBLIC_WORDS, "public"),
        guarantee_section(released),
        budget_section(released),
        images_section(released),
        *_quality(record, evaluation),
        section("Cost", facts(cost_facts(released))),
        settings_section(released),
    )


def private_report(run: Path) -> str:
    """Return the private edition. PRIVATE."""
    released = read_released(run / "release")
    identity = released.identity()
    public = read_record(public_folder(run), identity)
    own = read_record(private_folder(run), identity)
    record = {**own, **public}
    rows = read_metrics(run / "private")
    memorised = [memorisation_section(own, private_folder(run))] if "memorisation" in own else []
    return document(
        f"{released.name}: private report",
        _header(released, record, PRIVATE_WORDS, "private"),
        guarantee_section(released),
        budget_section(released),
        images_section(released),
        *_quality(record, public_folder(run) if public else private_folder(run)),
        *memorised,
        curves_section(rows),
        section("Cost", facts(cost_facts(released)), tag("h3", "Time"), time_facts(rows)),
        settings_section(released),
    )


def _quality(record: Mapping[str, Any], folder: Path) -> list[Html]:
    if "utility" not in record:
        return [
            section(
                "Utility and fidelity",
                paragraph("Not evaluated, or only against images that are not public. The command: ",
                          tag("code", "curriculumdp-evaluate RELEASE --real SET")),
            )
        ]  # fmt: skip
    utility = [utility_section(record, utility_plot_of(folder))] if record["utility"] else []
    return [*utility, fidelity_section(record)]


def _utility_card(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the best classifier's balanced accuracy in big, and in small what it has to be held against."""
    kind = "balanced" if all("balanced" in value for value in record["utility"].values()) else None
    shown = {name: value[kind] if kind else value for name, value in record["utility"].items()}
    name, best = max(shown.items(), key=lambda item: item[1]["mean"])
    words = f"accuracy on real images of {name} trained on synthetic"
    if kind:
        plain = percent({**record["utility"][name], "spread": None})
        words = (
            f"balanced {words}; plain {plain} %, always the commonest class {record['real']['majority']:.1%}"
        )
    return f"{percent({**best, 'spread': None})} %", words


def _header(released: Released, record: Mapping[str, Any], words: str, edition: str) -> Html:
    promised = released.certificate.guarantee
    channels, height, width = promised.public.image_shape
    cards = [
        (f"ε = {rounded_up(promised.epsilon)}", "promised for the whole run"),
        (f"δ = {rounded_up(promised.delta)}", "slack in that promise"),
        (f"{promised.public.units:,}", f"protected units, each {promised.unit}"),
    ]
    if record.get("utility"):
        cards.append(_utility_card(record))
    return tag(
        "header",
        tag("span", words, class_=f"edition {edition}"),
        tag("h1", released.name),
        paragraph(
            f"Synthetic images of {width}x{height} pixels in {'colour' if channels == 3 else 'grey'}, "
            f"{released.classes} classes, from a diffusion model trained under differential privacy."
        ),
        tag("div", *(tag("div", tag("b", big), tag("span", small), class_="card") for big, small in cards),
            class_="cards"),
    )  # fmt: skip
