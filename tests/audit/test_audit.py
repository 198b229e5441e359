"""The audit on the real training code: with noise it shows less than the certificate, without noise more."""

import copy
import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from curriculumdp.audit import audit as audit_module
from curriculumdp.audit.audit import Request, audit, exceeded, ideal_bounds, in_words, write_audit
from curriculumdp.audit.bounds import bounds_of_one_run
from curriculumdp.audit.canaries import AuditedPhase, of_units, one_run
from curriculumdp.clipping import dense_store
from curriculumdp.curriculum import audited, private
from curriculumdp.curriculum.audited import audited_run
from curriculumdp.curriculum.plan import Plan, PlannedPhase
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.train import PHASE_CLASSES
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.secret import RunSecret
from tests.support.runs import tiny

CANARIES, TRIALS, STEPS = 300, 60, 4


def secrets() -> Iterator[RunSecret]:
    """The same secrets in every test."""
    for number in itertools.count():
        yield RunSecret.from_bytes(hashlib.sha256(f"audit {number}".encode()).digest())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A plan of ε = 1 for a tiny network; at rate 3/4 a canary is in no step only once in 256 runs."""
    changes = {"curriculum": ["private"], "central": None, "warmup": None, "privacy__epsilon": 1.0}
    changes |= {"private__steps": STEPS, "private__sample_rate": 0.75, "private__draws": 1}
    config = tiny(tmp_path_factory.mktemp("audit") / "run", **changes, compute__microbatch=64)
    return audited_run(config, with_data=False)


@pytest.fixture(scope="module")
def record(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A whole small audit; its temporary files lie where the test of traces looks."""
    place = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place))
        found = audit(run, Request(CANARIES, TRIALS), lambda _: None, secrets())
    assert not list(place.iterdir()), "an audit's runs leave nothing behind"
    return found


@pytest.mark.parametrize("kind", ["one_run", "many_runs"])
def test_with_noise_no_bound_is_above_the_certificates_epsilon(record: dict, kind: str) -> None:
    found = record["audits"][kind]["noise_on"]
    assert record["confidence"] == 0.95
    assert record["certificate"]["epsilon"] <= 1.0
    assert max(found["plain"], found["gaussian"]) <= record["certificate"]["epsilon"]
    assert not exceeded(record)


@pytest.mark.parametrize("kind", ["one_run", "many_runs"])
def test_without_noise_the_bounds_are_far_above_it(record: dict, kind: str) -> None:
    found, epsilon = record["audits"][kind]["noise_off"], record["certificate"]["epsilon"]
    assert found["plain"] > 1.5 * epsilon
    assert found["gaussian"] > 4 * epsilon


@pytest.mark.parametrize("kind", ["one_run", "many_runs"])
def test_the_attack_without_noise_shows_what_an_ideal_one_does(record: dict, kind: str) -> None:
    found = record["audits"][kind]
    assert found["noise_off"]["plain"] == pytest.approx(found["ideal"]["missing"]["plain"], rel=0.25)


def test_a_step_that_forgets_its_noise_is_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "add_noise", lambda total, noise_multiplier, key: total.clone())
    scores = one_run(of_units(run, CANARIES), CANARIES, True, next(secrets()))
    assert bounds_of_one_run(scores.ratios, scores.included, 1e-4, 0.05).plain > 1.5 * run.plan.epsilon


def test_a_clip_that_lets_ten_times_the_norm_through_is_seen(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = dense_store.add_clipped_rows

    def loose(grads, total, clip_norm, present):
        part = total.clone().zero_()
        result = honest(grads, part, clip_norm, present)
        total += 10 * part
        return result

    monkeypatch.setattr(dense_store, "add_clipped_rows", loose)
    scores = one_run(of_units(run, CANARIES), CANARIES, True, next(secrets()))
    assert bounds_of_one_run(scores.ratios, scores.included, 1e-4, 0.05).plain > run.plan.epsilon


@pytest.mark.parametrize("noise", [True, False])
def test_every_step_of_an_audited_run_is_charged(
    run: Run, monkeypatch: pytest.MonkeyPatch, noise: bool
) -> None:
    charged = []
    honest = Ledger.charge

    def counted(self, phase, step, **release):
        charged.append((phase, step, release["sample_rate"], release["noise_multiplier"]))
        return honest(self, phase, step, **release)

    monkeypatch.setattr(Ledger, "charge", counted)
    one_run(of_units(run, 8), 8, noise, next(secrets()))
    planned = run.plan.events()[-1]
    assert charged == [
        (planned.name, step, planned.sample_rate, planned.noise_multiplier) for step in range(planned.count)
    ]


def test_no_config_can_ask_for_the_control() -> None:
    assert AuditedPhase not in PHASE_CLASSES.values()
    assert set(PHASE_CLASSES) == {"central", "frequency", "warmup", "private"}


def test_the_record_says_what_it_is_and_what_it_could_have_seen(record: dict) -> None:
    assert record["what"] == "Information in addition to the certificate, never its proof."
    assert "no sensitive image was read" in record["privacy"]
    words = " ".join(record["in_words"])
    assert "missing noise was detected" in words
    assert "would have detected noise that is" in words
    assert record["certificate"]["audited"]["count"] == STEPS


def test_blindness_and_an_excess_are_said_in_words(record: dict) -> None:
    found = copy.deepcopy(record["audits"]["one_run"])
    weak = record["certificate"] | {"epsilon": 50.0}
    assert "WAS NOT detected" in in_words("one_run", found, weak)[1]
    assert "could not have detected noise that is halved or missing" in in_words("one_run", found, weak)[2]
    found["noise_on"]["plain"] = 2.0
    assert "above the certificate's: look for a fault" in in_words("one_run", found, record["certificate"])[0]
    assert exceeded(record | {"audits": {"one_run": found}})


def test_less_noise_gives_an_ideal_attack_more() -> None:
    release = PrivacyEvent("private", "subsampled_gaussian", 0.5, 4.0, 8)
    for kind in ("one_run", "many_runs"):
        bounds = [ideal_bounds(kind, 200, release, factor, 1e-4, 0.05).gaussian for factor in (1, 0.25, 0)]
        assert bounds == sorted(bounds)
        assert bounds[-1] > bounds[0] + 2


def test_figures_of_canaries_alone_are_public_and_others_private(record: dict, tmp_path: Path) -> None:
    folder = write_audit(record, tmp_path)
    assert folder == tmp_path / "audit"
    assert {file.name for file in folder.iterdir()} == {"audit.json", "audit.png"}
    folder = write_audit(record | {"privacy": audit_module.PRIVATE_WORDS}, tmp_path)
    assert folder == tmp_path / "private" / "audit"
    assert {path.stat().st_mode & 0o777 for path in (folder.parent, folder)} == {0o700}


def test_with_data_the_one_run_trains_on_it_and_is_private(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = PlannedPhase("private", "subsampled_gaussian", 0.02, 3.0, 2, 0.5, 28.7)
    monkeypatch.setattr(audited, "plan_curriculum", lambda _: Plan((row,), 0.5, 1e-4, 1.0, "by hand"))
    steps = run.config.private.model_copy(update={"steps": 2})
    real = audited_run(run.config.model_copy(update={"private": steps}), with_data=True)
    found = audit(real, Request(20, 0, with_data=True), lambda _: None, secrets())
    assert found["privacy"].startswith("PRIVATE")
    assert set(found["audits"]) == {"one_run"}
    whole = real.images
    assert len(whole.images) == whole.unit_count, "the set itself is left as it was"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(0, 0), "at least one canary or one run"),
        (Request(10**6, 0), r"of the \d+ parameters"),
        (Request(10, 0, significance=1.5), "significance"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_words(run: Run, request_: Request, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        audit(run, request_, lambda _: None)


def test_scores_do_not_depend_on_when_they_are_asked_for(run: Run) -> None:
    first, again = (one_run(of_units(run, 40), 40, True, next(secrets())) for _ in range(2))
    np.testing.assert_array_equal(first.ratios, again.ratios)
    np.testing.assert_array_equal(first.included, again.included)
