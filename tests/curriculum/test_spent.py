"""The bar's ε is a bound on what was charged, also where steps were done again."""

import pytest

from curriculumdp.curriculum.plan import Plan, PlannedPhase
from curriculumdp.curriculum.spent import counting_repeats

PLAN = Plan(
    (
        PlannedPhase("central", "subsampled_gaussian", 0.1, 6.0, 3, 0.1, 10.0),
        PlannedPhase("warmup", "post_processing", None, None, 50, 0.0, None),
        PlannedPhase("private", "subsampled_gaussian", 0.1, 2.0, 6, 0.9, 10.0),
    ),
    0.99,
    1e-5,
    1.0,
    "none",
)


@pytest.mark.parametrize(
    ("phase", "step", "charged", "shown"),
    [
        ("central", 2, 2, 0.2),
        ("central", 2, 3, 1.0),
        ("warmup", 50, 3, 0.5),
        ("warmup", 1, 4, 1.0),
        ("private", 4, 7, 0.4),
        ("private", 4, 8, 1.0),
        ("private", 6, 9, 0.6),
    ],
)
def test_the_bound_is_the_plans_only_as_long_as_no_more_was_charged(
    phase: str, step: int, charged: int, shown: float
) -> None:
    assert counting_repeats(lambda _, step: step / 10 if step < 50 else 0.5, PLAN, lambda: charged)(
        phase, step
    ) == pytest.approx(shown)
