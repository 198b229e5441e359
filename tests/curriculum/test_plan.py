"""The plan spends the budget on both phases together, and says so before any image is read."""

import json
from pathlib import Path

import pytest

from curriculumdp.config.config import Config, config_from, load_config
from curriculumdp.curriculum.plan import (
    EXACT_BELOW,
    Plan,
    described,
    other_budgets,
    plan_curriculum,
    spent_table,
)
from curriculumdp.privacy.accountant import ACCOUNTANT, AccountingError, epsilon, epsilon_prv
from curriculumdp.privacy.calibrate import BudgetTooSmall
from curriculumdp.privacy.event import PrivacyEvent
from tests.privacy.losses_by_fft import epsilon_by_fft

CONFIGS = Path(__file__).parents[2] / "configs"


def config(**changes: object) -> Config:
    values: dict = {
        "name": "plan",
        "data": {"source": "idx", "path": "/nowhere", "units": 6000, "classes": 10, "channels": 1, "size": 8},
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "model": {"channels": [8, 16]},
        "central": {"sample_rate": 0.1, "noise_multiplier": 10.0, "queries": 4, "size": 8},
        "warmup": {"steps": 7, "learning_rate": 1e-3},
        "private": {"steps": 90, "sample_rate": 0.05, "draws": 2, "learning_rate": 1e-3},
        "compute": {"microbatch": 8},
    }
    for path, value in changes.items():
        section, _, key = path.rpartition("__")
        (values[section] if section else values)[key] = value
    return config_from(values, "plan")


def dp_sgd_noise(plan: Plan) -> float:
    return plan.events()[-1].noise_multiplier


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_curriculum(config())


@pytest.mark.parametrize(("name", "budget"), [("fashion_mnist_eps1", 1.0), ("fashion_mnist_eps10", 10.0)])
def test_the_noise_of_fashion_mnist_is_within_half_a_percent_of_two_other_calculations(
    name: str, budget: float
) -> None:
    plan = plan_curriculum(load_config(CONFIGS / f"{name}.yaml"))
    central, private = plan.events()
    assert plan.epsilon <= budget == plan.budget

    def independent(sigma: float) -> float:
        parts = [
            (central.sample_rate, central.noise_multiplier, central.count),
            (private.sample_rate, sigma, private.count),
        ]
        return epsilon_by_fft(parts, plan.delta, reach=8 + 4 * budget)

    assert (
        independent(private.noise_multiplier * 1.005) < budget < independent(private.noise_multiplier * 0.995)
    )
    low, estimate, high = epsilon_prv(plan.events(), plan.delta)
    assert low <= plan.epsilon <= high
    assert estimate == pytest.approx(budget, rel=0.02)


def test_both_phases_together_spend_the_budget_and_no_more(plan: Plan) -> None:
    assert 0.999 < plan.epsilon <= 1.0
    assert plan.epsilon == epsilon(plan.events(), plan.delta)
    assert plan.accountant == ACCOUNTANT
    assert [row.name for row in plan.phases] == ["central", "warmup", "private"]
    alone = [row.epsilon_alone for row in plan.phases]
    assert alone[1] == 0
    assert max(alone) < plan.epsilon < sum(alone)


def test_the_plan_is_solved_at_the_configs_delta_whatever_the_number_of_units(plan: Plan) -> None:
    """δ is the user's, for the units that the config declares: never a default, never 1/units of something."""
    other = plan_curriculum(config(privacy__delta=2e-6))
    more = plan_curriculum(config(data__units=9000))
    assert (plan.delta, other.delta, more.delta) == (1e-5, 2e-6, 1e-5)
    assert dp_sgd_noise(other) > dp_sgd_noise(plan) == dp_sgd_noise(more)
    assert 0.999 < epsilon(other.events(), 2e-6) <= 1.0


def test_a_row_is_what_will_be_released(plan: Plan) -> None:
    central, private = plan.events()
    assert central == PrivacyEvent("central", "subsampled_gaussian", 0.1, 10.0, 4)
    assert private.count == 90
    assert private.sample_rate == 0.05
    assert plan.phase("private").noise_multiplier == private.noise_multiplier
    assert [row.expected_units for row in plan.phases] == [pytest.approx(600), None, pytest.approx(300)]
    assert plan.phase("private").epsilon_alone == epsilon([private], 1e-5)
    with pytest.raises(KeyError):
        plan.phase("other")


def test_the_warm_up_is_free_and_has_neither_rate_nor_noise(plan: Plan) -> None:
    warmup = plan.phase("warmup")
    assert (warmup.mechanism, warmup.sample_rate, warmup.noise_multiplier) == ("post_processing", None, None)
    assert warmup.event is None
    assert warmup.steps == 7


def test_a_dearer_central_phase_asks_for_more_noise(plan: Plan) -> None:
    dearer = plan_curriculum(config(central__queries=40))
    assert dp_sgd_noise(dearer) > 1.015 * dp_sgd_noise(plan)
    assert dearer.epsilon <= 1.0


def test_dp_sgd_alone_gets_the_whole_budget(plan: Plan) -> None:
    only = plan_curriculum(config(curriculum=["private"], central=None, warmup=None))
    assert [release.name for release in only.events()] == ["private"]
    assert dp_sgd_noise(only) < dp_sgd_noise(plan)
    assert only.epsilon == only.phase("private").epsilon_alone > 0.999


def test_the_easy_phase_alone_costs_what_it_costs() -> None:
    easy = plan_curriculum(config(curriculum=["central", "warmup"]))
    assert [release.name for release in easy.events()] == ["central"]
    assert easy.epsilon == easy.phase("central").epsilon_alone < 0.2
    assert other_budgets(easy) == []


@pytest.mark.parametrize("curriculum", [["central", "warmup"], ["central", "warmup", "private"]])
def test_queries_that_cost_more_than_the_budget_are_refused_with_both_numbers(curriculum: list[str]) -> None:
    with pytest.raises(
        BudgetTooSmall, match=r"central\.queries = 400.*cost ε = 0\.\d+ alone.*is 0\.3"
    ) as refusal:
        plan_curriculum(config(curriculum=curriculum, central__queries=400, privacy__epsilon=0.3))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.epsilon", 500.0),
        ("central.noise_multiplier", 0.01),
        ("private.steps", 2_000_000),
    ],
)
def test_what_no_accountant_takes_is_refused_in_one_line_with_its_key(key: str, value: float) -> None:
    with pytest.raises(AccountingError, match=key.replace(".", r"\.")) as refusal:
        plan_curriculum(config(**{key.replace(".", "__"): value}))
    assert "\n" not in str(refusal.value)


def test_a_plan_survives_the_ledgers_json_to_the_bit(plan: Plan) -> None:
    assert Plan.from_record(json.loads(json.dumps(plan.record()))) == plan


def test_a_plan_is_the_same_each_time(plan: Plan) -> None:
    assert plan_curriculum(config()) == plan


def test_what_is_spent_grows_to_the_plans_epsilon_and_is_never_understated(plan: Plan) -> None:
    table = spent_table(plan, points=5)
    done, spent = zip(*table, strict=True)
    assert done == (0, 4, 19, 38, 56, 75, 94), "even points, and the end of the central queries"
    assert spent[0] == 0
    assert list(spent) == sorted(spent)
    assert spent[-1] == pytest.approx(plan.epsilon, rel=1e-6)
    assert spent[-1] <= plan.epsilon
    central, private = plan.events()
    so_far = [central, PrivacyEvent("private", private.mechanism, 0.05, private.noise_multiplier, 34)]
    assert spent[3] == pytest.approx(epsilon(so_far, plan.delta), rel=1e-6)


def test_the_table_names_every_figure_that_a_user_asks_for(plan: Plan) -> None:
    text = described(plan)
    for head in (
        "mechanism",
        "sample rate",
        "noise multiplier",
        "steps",
        "units per step",
        "ε alone",
        "of budget",
    ):
        assert head in text
    assert f"{plan.phase('private').noise_multiplier:.5g}" in text
    assert "ε = 2: ≤ " in text
    assert "ε = 0.5: ≤" not in text
    assert len(other_budgets(plan)) == 3
    half = dict(other_budgets(plan))[0.5]
    assert half is not None
    assert half > dp_sgd_noise(plan)
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("budget", [0.02, 0.6, 3.0])
def test_the_noise_that_another_budget_needs_is_exact_or_said_to_be_a_bound(budget: float) -> None:
    """By RDP a tiny budget would seem to need many times the noise that it needs."""
    only = plan_curriculum(config(curriculum=["private"], central=None, warmup=None, privacy__epsilon=budget))
    for other, noise in other_budgets(only):
        true = plan_curriculum(
            config(curriculum=["private"], central=None, warmup=None, privacy__epsilon=other)
        )
        assert noise is not None
        if other < EXACT_BELOW:
            assert noise == dp_sgd_noise(true)
        else:
            assert dp_sgd_noise(true) <= noise < 1.2 * dp_sgd_noise(true)
