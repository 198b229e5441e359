"""The report tells the truth about ε, fetches nothing, and its public edition knows nothing private."""

import json
import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist

import pytest
import torch

from curriculumdp.durations import duration
from curriculumdp.evaluation import fidelity
from curriculumdp.evaluation.evaluate import Request, evaluate_release
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.released import read_released
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.detection import detection_bound
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.release.export import certified_events
from curriculumdp.report.quality import read_metrics, seconds_by_phase
from curriculumdp.report.report import private_report, public_report, write_reports
from curriculumdp.report.sections import cost_facts, spending
from tests.support.evaluated_run import (
    CLASSES,
    MARK,
    QUICK,
    SETTINGS,
    digits,
    write_npz,
    write_private,
    write_run,
)
from tests.support.tiny_release import EVENTS, guarantee


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation against public images and the training set."""
    folder = tmp_path_factory.mktemp("evaluated")
    place = Path(shutil.copytree(run, folder / "tiny"))
    real = write_npz(folder / "real.npz", digits("test", CLASSES))
    train = write_npz(folder / "train.npz", digits("train", CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "SMALL", QUICK)
        request = Request(real, 40, 2, ("logistic",), torch.device("cpu"), train=train, public_real=True)
        evaluate_release(read_released(place / "release"), request, place, lambda text: None)
    return place


@pytest.fixture(scope="module")
def pages(evaluated: Path) -> tuple[str, str]:
    """(public, private) edition."""
    written = write_reports(evaluated)
    assert written == [evaluated / "report_public.html", evaluated / "private" / "report.html"]
    return written[0].read_text(), written[1].read_text()


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def test_the_public_edition_is_the_same_whatever_lies_under_private(
    evaluated: Path, pages: tuple[str, str], tmp_path: Path
) -> None:
    for neighbour in ("other losses", "nothing"):
        place = Path(shutil.copytree(evaluated, tmp_path / neighbour))
        shutil.rmtree(place / "private")
        if neighbour == "other losses":
            write_private(place / "private", loss=0.1234567)
        assert public_report(place / "release", place / "evaluation") == pages[0]


def test_private_figures_are_in_the_private_edition_alone(pages: tuple[str, str]) -> None:
    public, private = pages
    for words in (
        "Memorisation",
        "Training curves",
        "loss on sensitive images",
        "<h3>Time</h3>",
        "real training images",
    ):
        assert words in private
        assert words not in public
    assert "Private edition" in private
    assert "Public edition" in public
    assert MARK not in public


def test_both_editions_hold_guarantee_budget_images_quality_cost_and_settings(pages: tuple[str, str]) -> None:
    for page in pages:
        for title in ("What is guaranteed", "Where the budget went", "Images", "Utility", "Fidelity", "Cost",
                      "Configuration and versions"):  # fmt: skip
            assert f"<h2>{title}</h2>" in page
        assert "(6, 0.0001)-differentially private for one unit" in page
        assert "ε under replace-one" in page
        assert "synthetic images of class 2" in page
        assert "private.sample_rate" in page


def test_nothing_is_fetched_and_no_script_runs(pages: tuple[str, str]) -> None:
    for page in pages:
        elements = Elements(page)
        assert not {name for name, _ in elements.found} & {
            "script",
            "link",
            "iframe",
            "object",
            "form",
            "base",
        }
        assert all((image["src"] or "").startswith("data:image/png;base64,") for image in elements.of("img"))
        assert not re.search(r"(?i)url\(|@import|https?://", re.sub(r'src="data:[^"]*"', "", page))
        policy = [meta["content"] for meta in elements.of("meta") if meta.get("http-equiv")]
        assert policy
        assert (policy[0] or "").startswith("default-src 'none'")


def test_every_picture_says_what_it_shows(pages: tuple[str, str]) -> None:
    for page in pages:
        images = Elements(page).of("img")
        assert len(images) >= 6
        assert all(len(image["alt"] or "") > 15 and image["width"] and image["height"] for image in images)
        assert [bar["aria-label"] for bar in Elements(page).of("div") if bar.get("role") == "img"]


def test_the_private_edition_is_for_its_owner_alone(evaluated: Path, pages: tuple[str, str]) -> None:
    assert stat.S_IMODE((evaluated / "private" / "report.html").stat().st_mode) == 0o600


def test_text_of_a_hostile_release_stays_text(run: Path, tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=http://x>'
    place = write_run(tmp_path / "hostile", config={**SETTINGS, "name": hostile, "extra": {hostile: hostile}})
    page = public_report(place / "release", place / "evaluation")
    assert not Elements(page).of("script")
    assert all((image["src"] or "").startswith("data:") for image in Elements(page).of("img"))
    assert "&lt;script&gt;" in page


def test_an_evaluation_that_is_missing_or_private_is_not_in_the_public_edition(
    run: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(run, tmp_path / "tiny"))
    assert "Not evaluated, or only against images that are not public" in public_report(
        place / "release", place / "evaluation"
    )
    assert "Not evaluated" in private_report(place)


def test_a_run_without_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has no release yet"):
        write_reports(tmp_path)


def test_the_budget_is_split_as_the_accountant_says() -> None:
    spent = spending(guarantee())
    assert spent.ends["central"] == (3, pytest.approx(epsilon(EVENTS[:1], 1e-4), abs=1e-9))
    assert spent.total == pytest.approx(epsilon(EVENTS, 1e-4), abs=1e-9)
    assert [uses for uses, _ in spent.path][:2] == [0, 3]
    assert spent.path[-1] == (43, spent.total)
    costs = [cost for _, cost in spent.path]
    assert costs == sorted(costs)


@pytest.mark.parametrize("kept", ["central", "private"])
def test_a_run_of_one_phase_has_a_report(kept: str, tmp_path: Path) -> None:
    rows = [row for row in EVENTS if row.name == kept]
    promised = guarantee(events=certified_events(rows, {"central": 4.0, "private": 1.0}))
    phases = ["central", "warmup"] if kept == "central" else ["private"]
    left_out = () if kept == "central" else ("central", "warmup")
    config = {key: value for key, value in SETTINGS.items() if key not in left_out} | {"curriculum": phases}
    place = write_run(tmp_path / kept, guarantee=promised, config=config, central=None)
    page = public_report(place / "release", place / "evaluation")
    assert ("central images: ε" in page) == (kept == "central")
    assert ("DP-SGD: ε" in page) == (kept == "private")
    steps = dict(cost_facts(read_released(place / "release")))["DP-SGD steps"]
    assert steps == ("0" if kept == "central" else "40")


def test_the_detection_bound_holds_and_is_tight_for_a_gaussian() -> None:
    """One Gaussian release at σ lets the best test detect Φ(Φ⁻¹(α) + 1/σ), and no test more."""
    normal, sigma = NormalDist(), 0.8
    rows = certified_events([PrivacyEvent("private", "gaussian", 1.0, sigma, 1)], {"private": 1.0})
    alarms = (0.001, 0.01, 0.1)
    best = [normal.cdf(normal.inv_cdf(rate) + 1 / sigma) for rate in alarms]
    found = detection_bound([row.event for row in rows], guarantee().epsilon, alarms)
    for bound, reached in zip(found, best, strict=True):
        assert reached <= bound <= 1.1 * reached


def test_time_is_summed_over_steps_and_a_stopped_night_is_not_counted(run: Path) -> None:
    rows = read_metrics(run / "private")
    assert len(rows) == 30  # the torn line is passed over
    assert seconds_by_phase(rows) == {"warmup": 19.0, "private": 18.0}


def test_a_picture_that_is_none_ends_in_one_line(run: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(run, tmp_path / "tiny"))
    (place / "release" / "samples.png").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"samples\.png cannot be read as a PNG"):
        public_report(place / "release", place / "evaluation")


def test_an_evaluation_of_an_earlier_release_is_not_passed_off_as_this_one(
    evaluated: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(evaluated, tmp_path / "tiny"))
    record = json.loads((place / "evaluation" / "evaluation.json").read_text())
    record["release"]["certificate_sha256"] = "0" * 64
    (place / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(EvaluationError, match="another release"):
        write_reports(place)


@pytest.mark.parametrize(("seconds", "said"), [(0.0158, "0.016 s"), (61, "1.02 min"), (5400, "1.5 h")])
def test_a_time_is_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said
