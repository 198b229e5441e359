"""Plans of configs drawn at random keep to their budgets by an accountant that shares no arithmetic with ours."""

import os
import random
from pathlib import Path

import pytest

from curriculumdp.config.config import Config, load_config
from curriculumdp.curriculum.plan import plan_curriculum
from curriculumdp.privacy.calibrate import BudgetTooSmall
from tests.privacy.epsilon_by_contour import epsilon_by_contour

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))


def drawn(draw: random.Random) -> Config:
    """A shipped config with another budget, other queries and other steps, all over what a config takes."""
    path = draw.choice(SHIPPED)
    config = load_config(path)
    delta = min(10 ** draw.uniform(-10, -4), 0.9 / config.data.units)
    changes = {
        "privacy.epsilon": 10 ** draw.uniform(-0.3, 1.3),
        "privacy.delta": delta,
        "central.sample_rate": draw.choice([1.0, 10 ** draw.uniform(-2.5, 0)]),
        "central.noise_multiplier": 10 ** draw.uniform(0.3, 1.5),
        "central.queries": int(10 ** draw.uniform(0, 2.4)),
        "private.sample_rate": draw.choice([1.0, 10 ** draw.uniform(-2.5, 0), 10 ** draw.uniform(-2.5, 0)]),
        "private.steps": int(10 ** draw.uniform(2, 5)),
    }
    return load_config(path, [f"{key}={value}" for key, value in changes.items()])


def keeps_to_its_budget(seed: int) -> None:
    draw = random.Random(seed)
    while True:
        config = drawn(draw)
        try:
            plan = plan_curriculum(config)
            break
        except BudgetTooSmall:  # the drawn queries alone cost it
            continue
    parts = [(r.sample_rate, r.noise_multiplier, r.count) for r in plan.events()]
    true = epsilon_by_contour(parts, config.privacy.delta)
    assert true <= plan.epsilon <= config.privacy.epsilon
    assert plan.epsilon > 0.999 * config.privacy.epsilon
    assert plan.epsilon - true < 1e-4 * sum(count for *_, count in parts) ** 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_random_plan_keeps_to_its_budget(seed: int) -> None:
    keeps_to_its_budget(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, int(os.environ.get("PLANS", "20"))))
def test_many_random_plans_keep_to_their_budgets(seed: int) -> None:
    keeps_to_its_budget(seed)
