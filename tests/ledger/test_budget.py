"""`data.budget`: all runs on one data set together keep to it, whatever later runs are chosen after."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.rdp import compute_epsilon
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from curriculumdp.config.config import config_from
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.ledger.dataset_ledger import DatasetLedger, NoRoom
from curriculumdp.ledger.mirror import RunMirror
from curriculumdp.ledger.run_ledger import BudgetSpent, Ledger, LedgerError
from curriculumdp.privacy.accountant import AccountingError, epsilon, losses
from curriculumdp.privacy.calibrate import solve_noise_multiplier
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.renyi_filter import RenyiFilter
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import one_process
from tests.support.runs import tiny

DELTA, BUDGET = 1e-5, 2.0
CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 2.0, 200)
PLAN = (CENTRAL, PRIVATE)
DATA = [np.arange(12, dtype=np.uint8), np.array([0, 1])]
FINGERPRINT = {"threads": 1}
NONCE = "5e" * 32


def anything(_: Sequence[PrivacyEvent]) -> bool:
    return True


class Place:
    """A data set's folder with a budget, and run folders on it."""

    def __init__(self, root: Path, **definition: object) -> None:
        self.root = root
        self.definition = {"unit": "patient", "delta": DELTA, "units": 1437, "budget": BUDGET} | definition

    def made(self) -> "Place":
        """The same place, with the ledger that an operator makes there."""
        DatasetLedger.create(self.root / "state", self.definition)
        return self

    def shared(self, **changes: Any) -> DatasetLedger:
        return DatasetLedger.open(self.root / "state", self.definition | changes)

    def begin(self, number: int, plan: Sequence[PrivacyEvent] = PLAN, allowance: Any = anything) -> Ledger:
        run = self.root / f"run{number}"
        run.mkdir()
        record = {"events": [asdict(event) for event in plan]}
        ledger = Ledger.create(run, secret(number), record, DATA, allowance)
        self.shared().attach(ledger, 1.0, DATA)
        ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def resume(self, number: int, data: Any = DATA, allowance: Any = anything) -> Ledger:
        ledger = Ledger.open(self.root / f"run{number}", secret(number), {}, data, allowance)
        self.shared().attach(ledger, 1.0, data)
        if data is not None:
            ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def share(self) -> float:
        left = self.shared().share_left()
        assert left is not None
        return 1 - left


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path).made()


def secret(number: int) -> RunSecret:
    return RunSecret.from_bytes(bytes([number]) * 32)


def charge(ledger: Ledger, step: int, event: PrivacyEvent = PRIVATE) -> bytes:
    return ledger.charge(
        event.name,
        step,
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        clip_norm=1.0,
        total=np.arange(5, dtype=np.int64) + step,
    )


def filling(share: float, budget: float = BUDGET) -> PrivacyEvent:
    """A plan of one row that takes about this part of the budget."""
    of_one = RenyiFilter(budget, DELTA).share([replace(PRIVATE, count=1)])
    return replace(PRIVATE, count=round(share / of_one))


# --- the filter


@pytest.mark.parametrize("delta", [1e-4, 1e-5, 1e-9])
@pytest.mark.parametrize("budget", [0.05, 0.5, 1.0, 8.0, 10.0, 50.0, 100.0])
def test_the_limit_at_its_order_is_the_budget_at_delta(budget: float, delta: float) -> None:
    limit = RenyiFilter(budget, delta)
    found, _ = compute_epsilon([limit.order], [limit.limit], delta)
    assert found <= budget
    assert found == pytest.approx(budget, rel=1e-5)
    above, _ = compute_epsilon([limit.order], [limit.limit * 1.01], delta)
    assert above > budget


def renyi_by_quadrature(event: PrivacyEvent, order: int) -> float:
    """D_α of one use by integration, the larger of both directions: it shares nothing with the library."""
    rate, sigma = event.sample_rate, event.noise_multiplier

    def of(upper: Callable[[float], float], lower: Callable[[float], float]) -> float:
        def weighted(x: float) -> float:
            return math.exp(order * upper(x) + (1 - order) * lower(x))

        far = 12 * sigma + order + 1
        return math.log(quad(weighted, -far, far, limit=2000, epsabs=0, epsrel=1e-12)[0]) / (order - 1)

    def mixture(x: float) -> float:
        parts = [norm.logpdf(x, 0, sigma), norm.logpdf(x, 1, sigma)]
        return float(logsumexp(parts, b=[1 - rate, rate]))

    def plain(x: float) -> float:
        return float(norm.logpdf(x, 0, sigma))

    return max(of(mixture, plain), of(plain, mixture))


@pytest.mark.parametrize(
    "event",
    [
        replace(PRIVATE, count=1),
        PrivacyEvent("private", "subsampled_gaussian", 0.5, 2.0, 1),
        PrivacyEvent("private", "subsampled_gaussian", 1 / 15, 12.0, 1),
        PrivacyEvent("central", "gaussian", 1.0, 3.0, 1),
    ],
)
@pytest.mark.parametrize("budget", [1.0, 8.0, 30.0])
def test_a_share_is_the_divergence_of_the_fixed_order_in_the_worse_direction(
    event: PrivacyEvent, budget: float
) -> None:
    limit = RenyiFilter(budget, DELTA)
    expected = renyi_by_quadrature(event, limit.order) / limit.limit
    assert limit.share([event]) == pytest.approx(expected, rel=1e-6)
    assert limit.share([replace(event, count=7), event]) == pytest.approx(8 * expected, rel=1e-6)


@pytest.mark.parametrize("budget", [1.0, 3.0, 10.0])
def test_what_fills_the_limit_costs_at_most_the_budget_and_little_less(budget: float) -> None:
    full = filling(0.999, budget)
    cost = epsilon([full], DELTA)
    assert 0.85 * budget < cost <= budget


def test_costs_chosen_after_an_output_was_seen_keep_to_delta() -> None:
    """An adversary sees one Gaussian event and then takes whichever of two mechanisms hurts more there.

    Each fills what is left of the limit. δ(ε) is the mean over the first output of the second's δ(ε − loss).
    """
    budget = 2.0
    limit = RenyiFilter(budget, DELTA)
    half = math.sqrt(limit.order / limit.limit)  # σ of a Gaussian that takes half
    strong = PrivacyEvent("gaussian", "gaussian", 1.0, half, 1)
    rare = PrivacyEvent("rare", "subsampled_gaussian", 0.001, 0.8, 1)
    rare = replace(rare, count=int(0.5 / limit.share([rare])))
    assert limit.share([strong, strong]) <= 1.00001
    assert limit.share([strong, rare]) <= 1
    seconds = [losses(event) for event in (strong, rare)]
    outputs = np.linspace(8, -8, 801) * half + 1  # what is left of the budget rises
    weights = norm.pdf(outputs, 1, half) * (outputs[0] - outputs[1])
    left = budget - (2 * outputs - 1) / (2 * half**2)
    deltas = np.array([second.get_delta_for_epsilon(left) for second in seconds])
    fixed, adaptive = deltas @ weights, deltas.max(0) @ weights
    assert adaptive > 1.01 * fixed.max()
    assert adaptive <= DELTA


def test_the_price_of_choosing_as_one_goes_is_what_the_readme_says() -> None:
    """Runs of ε = 1 on Fashion-MNIST at the paper's settings: composition would take one in 1, and 11 in 4."""
    run = [
        PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 5),
        PrivacyEvent("private", "subsampled_gaussian", 1 / 15, 12.031, 2250),
    ]
    shares = {budget: RenyiFilter(budget, DELTA).share(run) for budget in (1.1, 1.15, 4.0)}
    assert shares[1.1] > 1 >= shares[1.15]
    assert 9 * shares[4.0] <= 1 < 10 * shares[4.0]


def test_a_budget_that_no_order_can_hold_is_refused() -> None:
    with pytest.raises(AccountingError, match="too small for a limit"):
        RenyiFilter(0.001, DELTA)


def test_what_a_share_is_worth_is_near_to_the_epsilon_that_takes_it() -> None:
    limit = RenyiFilter(8.0, DELTA)
    for share in (0.05, 0.3, 0.9):
        run = filling(share, 8.0)
        assert limit.worth(limit.share([run])) == pytest.approx(epsilon([run], DELTA), rel=0.06)
    assert limit.worth(0.0) is None


# --- the config


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


# --- reservations


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


@pytest.mark.parametrize(("rate", "steps", "taken"), [(0.01, 50, 0.6), (0.2, 5, 0.0)])
def test_the_named_epsilon_is_the_largest_of_two_digits_for_the_plan_itself(
    tmp_path: Path, rate: float, steps: int, taken: float
) -> None:
    """Rare sampling under little noise takes far more of the limit than a Gaussian of the same ε."""
    place = Place(tmp_path, budget=5.0).made()
    place.begin(1, [filling(taken, 5.0)])
    central = replace(CENTRAL, count=2)
    step = PrivacyEvent("private", "subsampled_gaussian", rate, 1.0, steps)
    plan = [central, at_epsilon([central], step, 5.0)]
    with pytest.raises(NoRoom) as refused:
        place.shared().require_room(plan)
    named = named_epsilon(refused.value)
    place.shared().require_room([central, at_epsilon([central], step, named)])
    larger = named * (1.1 if named < 2 else 1.11 if named < 10 else 1.09)
    with pytest.raises(NoRoom):
        place.shared().require_room([central, at_epsilon([central], step, larger)])


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


# --- beyond the plan


def spend_to_the_end(ledger: Ledger, most: int = 10_000) -> int:
    """How many steps were charged, each in its own place, before BudgetSpent."""
    for step in range(most):
        try:
            charge(ledger, step)
        except BudgetSpent:
            return step
    raise AssertionError("nothing stopped the run")


def test_an_extension_stops_where_the_data_sets_budget_ends(place: Place) -> None:
    place.begin(1, [filling(0.9)])
    ledger = place.begin(2, [filling(0.05)])
    done = spend_to_the_end(ledger)
    limit = place.shared().limit
    assert limit is not None
    assert ledger.events() == [replace(PRIVATE, count=done)]
    assert 0.999 < 0.9 + limit.share(ledger.events()) <= 1.001
    assert 1 - limit.share([replace(PRIVATE, count=1)]) < place.share() <= 1
    ledger.seal("budget")
    assert place.share() <= 1


def test_an_extension_is_in_force_before_its_entry_is_written(place: Place) -> None:
    ledger = place.begin(1, [replace(PRIVATE, count=3)])
    for step in range(10):
        charge(ledger, step)
        (reservation,) = place.shared().reservations()
        assert reservation.events[0].count >= step + 1


def test_an_extension_keeps_the_plan_that_is_still_to_come(place: Place) -> None:
    steps = filling(0.6)
    ledger = place.begin(1, [replace(CENTRAL, count=1), steps])
    charge(ledger, 0, CENTRAL)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    charge(ledger, 0, CENTRAL)
    assert place.share() >= 0.6
    with pytest.raises(NoRoom):
        place.begin(2, [filling(0.5)])
    for step in range(steps.count):
        charge(ledger, step)


def test_where_plan_and_extension_do_not_fit_the_fewest_steps_are_given_up(place: Place) -> None:
    """Within ε, here as much as the plan costs: the reservation covers what the run may do, to its end."""
    steps = filling(0.6)
    plan = [replace(CENTRAL, count=1), steps]
    shared = place.shared()
    assert shared.limit is not None
    limit, most = shared.limit, shared.limit.share(plan)
    ledger = place.begin(1, plan, lambda events: limit.share(events) <= most)
    charge(ledger, 0, CENTRAL)
    for incarnation in range(3):
        ledger.new_incarnation(FINGERPRINT, f"mismatch {incarnation}")
        charge(ledger, 0, CENTRAL)
        assert most - limit.share([replace(PRIVATE, count=1)]) < place.share() <= most
        (mine,) = place.shared().reservations()
        assert ledger.granted() == list(mine.events)
    other = place.begin(2, [filling(1 - place.share() - 0.002)])
    done = spend_to_the_end(ledger)
    once = limit.share([replace(CENTRAL, count=1)]) / limit.share([replace(PRIVATE, count=1)])
    assert steps.count - 3 * once - 1 <= done < steps.count
    other.close()


def test_a_run_killed_between_an_extension_and_its_entry_resumes_within_what_is_reserved(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes the room of the steps that the extension gave up: the plan is not whole any more."""
    plan = [replace(CENTRAL, count=1), filling(0.6)]
    shared = place.shared()
    assert shared.limit is not None
    limit, most = shared.limit, shared.limit.share(plan)

    def allowance(events: Sequence[PrivacyEvent]) -> bool:
        return limit.share(events) <= most

    ledger = place.begin(1, plan, allowance)
    charge(ledger, 0, CENTRAL)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            charge(ledger, 0, CENTRAL)
    ledger.close()
    left = 1 - place.share()
    place.begin(2, [replace(filling(1.0), count=int(left / limit.share([replace(PRIVATE, count=1)])))])
    for data in (DATA, None):
        resumed = place.resume(1, data, allowance)
        (mine, _) = place.shared().reservations()
        assert resumed.granted() == list(mine.events)
        resumed.close()
    resumed = place.resume(1, DATA, allowance)
    spend_to_the_end(resumed)
    assert resumed.events()[1].count >= plan[1].count - 100
    assert place.share() <= 1


# --- at once


def forked(works: Sequence[Callable[[], object]]) -> list[int]:
    """The exit statuses of processes that each wait for the last one's start and then do their work."""
    start_r, start_w = os.pipe()
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(start_w)
                os.read(start_r, 1)  # ends when the parent closes its end
                work()
                status = 0
            except (LedgerError, BudgetSpent):
                status = 3
            finally:
                os._exit(status)
        children.append(child)
    os.close(start_w)
    os.close(start_r)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_of_runs_that_begin_at_once_only_those_that_fit_get_in(place: Place) -> None:
    place.shared()
    plan = [filling(0.3)]
    statuses = forked([lambda n=number: place.begin(n, plan) for number in range(1, 9)])
    assert sorted(statuses) == [0, 0, 0, 3, 3, 3, 3, 3]
    assert len(place.shared().reservations()) == 3
    assert 0.8 < place.share() <= 1


def test_two_runs_that_extend_at_once_do_not_pass_the_budget_together(place: Place) -> None:
    numbers = 1, 2
    for number in numbers:
        place.begin(number, [filling(0.45)]).close()

    def extend(number: int) -> None:
        ledger = place.resume(number)
        rows = ledger.planned[0].count
        for step in itertools.count():
            if step >= rows:
                charge(ledger, step)
            else:
                ledger._spending.add(
                    replace(PRIVATE, count=0)
                )  # the plan itself, unwritten: it is not at stake

    assert forked([lambda n=number: extend(n) for number in numbers]) == [3, 3]
    assert 0.99 < place.share() <= 1


# --- a whole run


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
