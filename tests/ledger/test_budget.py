"""`data.budget`: a run that all others leave no room for is refused, and told what would fit."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from curriculumdp.config.config import config_from
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.ledger.dataset_ledger import DatasetLedger, NoRoom
from curriculumdp.ledger.mirror import RunMirror
from curriculumdp.ledger.run_ledger import Ledger, LedgerError
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.calibrate import solve_noise_multiplier
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.renyi_filter import RenyiFilter
from curriculumdp.world import one_process
from tests.support.budget import BUDGET, CENTRAL, DATA, DELTA, PRIVATE, Place, charge, filling, secret
from tests.support.runs import tiny


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path).made()


def values(**data: object) -> dict[str, Any]:
    resolved = tiny(Path("run")).resolved()
    return resolved | {"data": resolved["data"] | data}


def test_a_budget_without_a_data_set_to_limit_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"data\.budget is given without data\.name") as refused:
        config_from(values(budget=5.0), "test")
    assert "\n" not in str(refused.value)
    assert config_from(values(budget=5.0, name="digits"), "test").data.budget == 5.0


@pytest.mark.parametrize("budget", [0, -1, 101, "much", True])
def test_a_budget_that_is_no_budget_is_refused_by_its_key(budget: object) -> None:
    with pytest.raises(ConfigError, match=r"data\.budget"):
        config_from(values(budget=budget, name="digits"), "test")


def test_a_run_may_not_cost_more_than_all_runs_together() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon is 3 and data\.budget is 2"):
        config_from(values(budget=2.0, name="digits"), "test")


def test_a_run_that_would_pass_the_budget_is_refused_with_what_is_left(place: Place) -> None:
    place.begin(1, [filling(0.7)])
    before = {path: path.read_bytes() for path in (place.root / "state").rglob("*") if path.is_file()}
    with pytest.raises(LedgerError, match=r"data\.budget is 2 .*30\.0% of it is left.* takes 40\.0%") as no:
        place.begin(2, [filling(0.4)])
    assert "\n" not in str(no.value)
    assert "launch/export.py" in str(no.value)
    with pytest.raises(LedgerError, match=r"data\.budget is 2 "):
        place.shared().require_room([filling(0.4)])
    after = {path: path.read_bytes() for path in (place.root / "state").rglob("*") if path.is_file()}
    assert after == before
    place.shared().require_room([filling(0.25)])
    place.begin(3, [filling(0.25)])
    assert place.share() == pytest.approx(0.95, abs=0.01)


def test_the_epsilon_that_a_refusal_names_fits(place: Place) -> None:
    place.begin(1, [filling(0.7)])
    with pytest.raises(NoRoom) as refused:
        place.begin(2, [filling(0.4)])
    named = named_epsilon(refused.value)
    place.begin(3, [at_epsilon([], filling(0.4), named)])
    assert place.share() > 0.95


def named_epsilon(refusal: Exception) -> float:
    return float(str(refusal).split("set privacy.epsilon to ")[1].split(",")[0])


def at_epsilon(fixed: Sequence[PrivacyEvent], last: PrivacyEvent, budget: float) -> PrivacyEvent:
    noise = solve_noise_multiplier(fixed, last.sample_rate, last.count, budget, DELTA)
    return replace(last, noise_multiplier=noise)


def most_noise_without_room(
    place: Place, fixed: PrivacyEvent, low: PrivacyEvent, high: PrivacyEvent
) -> PrivacyEvent:
    """An event between `low`, which has no room, and `high`, which has, that has none: to 0.1 % the most noise."""
    limit = place.shared().limit
    assert limit is not None
    while high.noise_multiplier > 1.001 * low.noise_multiplier:
        middle = replace(low, noise_multiplier=math.sqrt(low.noise_multiplier * high.noise_multiplier))
        if place.share() + limit.share([fixed, middle]) > 1:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize(("rate", "steps", "taken"), [(0.01, 50, 0.6), (0.2, 5, 0.0)])
def test_the_named_epsilon_is_the_largest_of_two_digits_for_the_plan_itself(
    tmp_path: Path, rate: float, steps: int, taken: float
) -> None:
    """Rare sampling under little noise takes far more of the limit than a Gaussian of the same ε.

    A larger ε is solved by no more noise than any that costs as little: where that has no room, it has none.
    """
    place = Place(tmp_path, budget=5.0).made()
    place.begin(1, [filling(taken, 5.0)])
    central = replace(CENTRAL, count=2)
    little = PrivacyEvent("private", "subsampled_gaussian", rate, 0.3, steps)
    with pytest.raises(NoRoom) as refused:
        place.shared().require_room([central, little])
    named = named_epsilon(refused.value)
    fits = at_epsilon([central], little, named)
    place.shared().require_room([central, fits])
    larger = named * (1.1 if named < 2 else 1.11 if named < 10 else 1.09)
    most = most_noise_without_room(place, central, little, fits)
    assert epsilon([central, most], DELTA) <= larger


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.5, 4.0, 12.0, 30.0])
@pytest.mark.parametrize("taken", [0.0, 0.35, 0.8])
def test_taking_the_advice_always_fits(tmp_path: Path, budget: float, taken: float) -> None:
    """A large query and few large steps, as the digits' run has, where a Gaussian's worth was no advice."""
    place = Place(tmp_path, budget=budget).made()
    if taken:
        place.begin(1, [filling(taken, budget)])
    central = PrivacyEvent("central", "subsampled_gaussian", 1.0, 40 / budget, 3)
    steps = PrivacyEvent("private", "subsampled_gaussian", 0.4, 1.0, 150)
    for wanted in (budget, 0.7 * budget):
        plan = [central, at_epsilon([central], steps, wanted)]
        try:
            place.shared().require_room(plan)
        except NoRoom as refused:
            if "set privacy.epsilon to" in str(refused):
                named = named_epsilon(refused)
                assert named < wanted
                place.shared().require_room([central, at_epsilon([central], steps, named)])
            else:
                assert taken, "nothing is spent, and yet no advice was found"


def test_no_epsilon_is_named_where_none_helps(place: Place) -> None:
    place.begin(1, [filling(0.97)])
    for plan in ([replace(CENTRAL, count=900)], [replace(CENTRAL, count=900), filling(0.1)]):
        with pytest.raises(NoRoom, match="use fewer or noisier queries") as refused:
            place.shared().require_room(plan)
        assert "privacy.epsilon" not in str(refused.value)
        assert "name another" not in str(refused.value)


def test_nothing_left_is_said_so(place: Place) -> None:
    place.begin(1, [filling(1.0 - 1e-3)])
    with pytest.raises(LedgerError, match=r"0\.\d% of it is left, and this run's plan takes 40\.0%: ") as no:
        place.begin(2, [filling(0.4)])
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("budget", [1.9, 2.1, None])
def test_the_budget_is_the_first_runs_for_ever(place: Place, budget: float | None) -> None:
    place.begin(1)
    with pytest.raises(
        LedgerError, match=r"budget is .* here and 2.0 for the data set: it can no longer change"
    ):
        place.shared(budget=budget)
    with pytest.raises(LedgerError, match="it can no longer change"):
        DatasetLedger.create(place.root / "state", place.definition | {"budget": budget})
    free = Place(place.root / "free", budget=None)
    free.root.mkdir()
    free.begin(1)
    with pytest.raises(LedgerError, match="and None for the data set: it can no longer change"):
        free.shared(budget=2.0)


def test_the_order_is_kept_from_the_first_query_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.begin(1)
    first = place.shared().limit
    monkeypatch.setattr("curriculumdp.privacy.renyi_filter.ORDERS", range(12, 99))  # another version's choice
    again = place.shared().limit
    assert first is not None
    assert again is not None
    assert (again.order, again.limit) == (first.order, first.limit)
    assert RenyiFilter(BUDGET, DELTA).order != first.order


def test_a_budget_too_small_for_its_delta_leaves_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"data\.budget: .* too small"):
        Place(tmp_path, budget=0.001).made()
    assert not (tmp_path / "state").exists()
    Place(tmp_path, budget=1.0).made()


def test_an_unfinished_run_keeps_its_reservation_and_a_sealed_one_gives_back_what_it_did_not_use(
    place: Place,
) -> None:
    ledger = place.begin(1, [filling(0.9)])
    for step in range(5):
        charge(ledger, step)
    ledger.close()
    with pytest.raises(LedgerError, match=r"data\.budget"):
        place.begin(2, [filling(0.9)])
    place.resume(1).seal("operator")
    limit = place.shared().limit
    assert limit is not None
    assert place.share() == pytest.approx(limit.share([replace(PRIVATE, count=5)]))
    place.begin(3, [filling(0.9)])


def test_what_a_run_killed_in_its_sealing_did_not_use_is_given_back_by_the_next_command(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = place.begin(1, [filling(0.9)])
    charge(ledger, 0)
    monkeypatch.setattr(RunMirror, "end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ledger.seal("operator")
    assert place.share() == pytest.approx(0.9, abs=0.01)
    place.resume(1, None)
    assert place.share() < 0.01


def test_a_run_that_only_ends_reserves_nothing(place: Place) -> None:
    run = place.root / "run1"
    run.mkdir()
    Ledger.create(run, secret(1), {"events": [asdict(filling(0.9))]}, DATA).close()
    ledger = place.resume(1, None)
    ledger.seal("operator")
    assert place.shared().reservations() == []


def test_a_second_run_beyond_the_budget_is_refused_before_its_first_query_and_a_smaller_one_is_not(
    tmp_path: Path,
) -> None:
    shared = {"name": "digits", "ledger": str(tmp_path / "state"), "budget": 5.0}

    def run(noise: float) -> None:
        phases = ["central", "warmup"]  # no noise is solved for
        config = tiny(tmp_path, curriculum=phases, central__noise_multiplier=noise)
        data = config.data.model_copy(update=shared)
        config = config_from(config.model_copy(update={"data": data}).resolved(), "test")
        run_curriculum(config, one_process(), secret=secret(2))

    with pytest.raises(LedgerError, match=r"launch/budget\.py CONFIG --create"):
        run(6.0)
    assert not (tmp_path / "state").exists()
    place = Place(tmp_path, unit="one image", delta=1e-4, budget=5.0).made()
    place.begin(1, [replace(PRIVATE, count=9000)])
    with pytest.raises(NoRoom, match=r"data\.budget is 5 .* use fewer or noisier queries"):
        run(0.8)
    assert not (tmp_path / "private" / "ledger.jsonl").exists()
    assert not (tmp_path / "private" / "secret").exists()
    run(6.0)
    assert (tmp_path / "release" / "privacy.json").exists()
