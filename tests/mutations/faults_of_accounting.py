"""Faults of the arithmetic: an ε that is lower than what was spent, or that answers another question."""

from curriculumdp.privacy.accountant import epsilon
from tests.mutations.planting import Check, Fault

COMPOSED = "tests.privacy.test_composition:"
LONG_RUN = Check(
    COMPOSED + "test_a_run_is_certified_from_above_and_closely",
    {"parts": [(0.02, 4.790737539, 400_000)], "delta": 1e-10},
)
UNTILTED = Check(
    COMPOSED + "test_the_bound_on_rounding_holds_at_slopes_where_rounding_is_all_there_is",
    {"part": (0.02, 4.790737539, 400_000), "slope": 2.0**-8},
)

ACCOUNTING_FAULTS = [
    Fault(
        "an infinite loss that is forgotten where the finite ones cost nothing",
        "curriculumdp.privacy.composition:Direction.epsilon",
        "math.log(delta - self.infinite)",
        "math.log(delta)",
        Check(COMPOSED + "test_an_infinite_loss_counts_where_the_finite_ones_cost_nothing"),
    ),
    Fault(
        "an ε printed to the nearest digit",
        "curriculumdp.privacy.event:rounded_up",
        "ROUND_CEILING",
        "'ROUND_HALF_EVEN'",
        Check(
            "tests.privacy.test_event:test_a_figure_is_never_printed_below_its_value",
            {"value": 1.0000049, "digits": 6, "text": "1.00001"},
        ),
    ),
    Fault(
        "a plan at the delta of another N",
        "curriculumdp.curriculum.plan:plan_curriculum",
        "budget, delta = config.privacy.epsilon, config.privacy.delta",
        "budget, delta = config.privacy.epsilon, 1 / config.data.units",
        Check(
            "tests.curriculum.test_plan:test_the_plan_is_solved_at_the_configs_delta_whatever_the_number_of_units"
        ),
    ),
    Fault(
        "calibration without phase 1",
        "curriculumdp.privacy.calibrate:_solved",
        "return epsilon_of_losses(spent.compose(more), delta)",
        "return epsilon_of_losses(more, delta)",
        Check("tests.curriculum.test_plan:test_both_phases_together_spend_the_budget_and_no_more"),
        raises=(RuntimeError,),
    ),
    Fault(
        "a convolution taken for exact",
        "curriculumdp.privacy.composition:Tilted.delta",
        "bound = found + math.exp(-FAR) + math.exp(_log_factor(self.slope)) * rounding",
        "bound = abs(found) + math.exp(-FAR)",
        UNTILTED,
    ),
    Fault(
        "one use's rounding for all",
        "curriculumdp.privacy.composition:convolved",
        "error += part.uses * (stages + added + POWER) * _size(np.real(total - log))",
        "error += (stages + added + POWER) * _size(np.real(total - log))",
        Check(COMPOSED + "test_a_convolutions_rounding_is_counted_once_for_each_use"),
    ),
    Fault(
        "a convolution without a tilt",
        "curriculumdp.privacy.composition:Direction.epsilon",
        "slope = _best_slope(bound)",
        "slope = 2.0**-8",
        LONG_RUN,
    ),
    Fault(
        "a window that loses mass",
        "curriculumdp.privacy.composition:Direction._window",
        "above = (self.log_moment(slope + step) - moment - math.log(OUTSIDE)) / step",
        "above = (self.log_moment(slope + step) - moment) / step",
        Check(COMPOSED + "test_mass_that_a_narrow_window_would_lose_or_fold_is_counted"),
    ),
    Fault(
        "the better direction of adjacency",
        "curriculumdp.privacy.composition:Losses.get_epsilon_for_delta",
        "return max(direction.epsilon(delta) for direction in self._directions)",
        "return min(direction.epsilon(delta) for direction in self._directions)",
        Check("tests.privacy.test_accountant:test_both_directions_of_adjacency_count"),
    ),
    Fault(
        "a delta at which cut-off tails show",
        "curriculumdp.privacy.accountant:check_delta",
        "if not (isinstance(delta, int | float) and MIN_DELTA <= delta < 1):",
        "if not (isinstance(delta, int | float) and 1e-13 <= delta < 1):",
        Check(
            "tests.privacy.test_accountant:test_a_delta_that_libraries_answer_wrongly_is_refused_in_one_line",
            {"method": epsilon, "delta": 1e-11},
        ),
    ),
]
