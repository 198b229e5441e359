"""The plan: what a run will do and what it will cost, solved before any image is read. PUBLIC: it sees no data.

It does not import torch, so `launch/plan.py` works on any machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import sqrt
from typing import Any, Literal

from curriculumdp.config.config import Config
from curriculumdp.phases import PHASES, SOLVED, PhaseName
from curriculumdp.privacy.accountant import ACCOUNTANT, check_delta, epsilon, epsilon_path
from curriculumdp.privacy.calibrate import (
    MAX_BUDGET,
    BudgetTooSmall,
    check_budget,
    solve_noise_multiplier,
    solve_noise_multiplier_rdp,
)
from curriculumdp.privacy.detection import ALARMS, at_most, detection_bound
from curriculumdp.privacy.event import AccountingError, Mechanism, PrivacyEvent, as_typed, rounded_up
from curriculumdp.recipe.network_size import network_size
from curriculumdp.recipe.signal import NoiseFigures, mean_clip_norm, pixel_noise, step_signal

EXACT_BELOW = 1.0

TABLE_HEAD = (
    "phase",
    "mechanism",
    "sample rate",
    "noise multiplier",
    "steps",
    "units per step",
    "ε alone",
    "of budget",
)


@dataclass(frozen=True)
class PlannedPhase:
    """A row of the plan. steps: queries or releases, if it has those. expected_units: per step, rate × declared units.

    epsilon_alone: what the phase would cost if it were the whole run. A phase that spends nothing has the mechanism
    "post_processing" and neither rate nor noise.
    """

    name: str
    mechanism: Mechanism | Literal["post_processing"]
    sample_rate: float | None
    noise_multiplier: float | None
    steps: int
    epsilon_alone: float
    expected_units: float | None

    @property
    def event(self) -> PrivacyEvent | None:
        """The privacy event that the phase is charged, or None."""
        if self.mechanism == "post_processing" or self.sample_rate is None or self.noise_multiplier is None:
            return None
        return PrivacyEvent(self.name, self.mechanism, self.sample_rate, self.noise_multiplier, self.steps)


@dataclass(frozen=True)
class Plan:
    """The phases of a run and their cost: all together cost `epsilon` at `delta`, which is at most `budget`."""

    phases: tuple[PlannedPhase, ...]
    epsilon: float
    delta: float
    budget: float
    accountant: str

    def phase(self, name: str) -> PlannedPhase:
        """Return the row of phase `name`; raise KeyError if the curriculum does not have it."""
        for row in self.phases:
            if row.name == name:
                return row
        raise KeyError(name)

    def events(self) -> list[PrivacyEvent]:
        """Return the events that the whole run is charged, in order."""
        return [row.event for row in self.phases if row.event is not None]

    def record(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON: the ledger's first entry."""
        return asdict(self) | {"phases": [asdict(row) for row in self.phases]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Plan":
        """Rebuild a plan from its record, without solving anything again."""
        return cls(**record | {"phases": tuple(PlannedPhase(**row) for row in record["phases"])})

    def figures(self) -> dict[str, Any]:
        """Return what `launch/plan.py --json` prints."""
        keys = ("name", "mechanism", "sample_rate", "noise_multiplier", "steps", "epsilon_alone")
        phases = [{key: getattr(row, key) for key in keys} for row in self.phases]
        return {"epsilon": self.epsilon, "delta": self.delta, "accountant": self.accountant, "phases": phases}


def plan_curriculum(config: Config) -> Plan:
    """Solve the plan of a run, which costs at most `privacy.epsilon`, central queries included.

    DP-SGD gets the smallest noise multiplier for which that holds. Raises AccountingError, one line; its subclass
    BudgetTooSmall if the central queries alone cost too much.
    """
    budget, delta = config.privacy.epsilon, config.privacy.delta
    with _about("privacy.delta"):
        check_delta(delta)
    with _about("privacy.epsilon"):
        check_budget(budget)
    events: dict[str, PrivacyEvent] = {}
    for phase in config.curriculum:
        if PHASES[phase].charged:
            before = list(events.values())
            events[phase] = _solved(config, before) if phase == SOLVED else _given(config, phase)
    total = epsilon(list(events.values()), delta)
    if not total <= budget:
        raise RuntimeError(f"the plan costs ε = {total!r}, more than its budget {budget!r}")
    rows = tuple(_row(config, phase, events.get(phase)) for phase in config.curriculum)
    return Plan(rows, total, delta, budget, ACCOUNTANT)


def spent_table(plan: Plan, points: int = 10) -> list[tuple[int, float]]:
    """Return rows (events done, upper bound on the ε spent), evenly spaced and at the end of each phase, from (0, 0).

    Between two rows the ε of the later one holds, since ε never decreases.
    """
    ends = list(accumulate(event.count for event in plan.events()))
    done = sorted({round(ends[-1] * point / points) for point in range(points + 1)} | {*ends})
    path = epsilon_path(plan.events(), done, plan.delta)
    return [(uses, min(spent, plan.epsilon)) for uses, spent in zip(done, path, strict=True)]


def other_budgets(plan: Plan) -> list[tuple[float, float | None]]:
    """Return (ε, DP-SGD's noise multiplier) for a quarter, half and twice the budget.

    Exact below EXACT_BELOW, where RDP is further off the smaller ε is; from there on by RDP, in a fraction of the time:
    an upper bound. None where the phases before it alone cost more. Empty without DP-SGD.
    """
    *before, last = plan.events()
    return [
        (budget, _noise_for(before, last, budget, plan.delta))
        for budget in (plan.budget / 4, plan.budget / 2, 2 * plan.budget)
        if last.name == SOLVED and budget <= MAX_BUDGET
    ]


def noise_figures(config: Config, plan: Plan) -> NoiseFigures:
    """Return what is left above the noise of each phase, from public figures alone."""
    rows, model, data = {row.name: row for row in plan.phases}, config.model, config.data
    pixels = step = run = None
    central, private = rows.get("central"), rows.get(SOLVED)
    if central and config.central and config.central.statistic == "mean" and central.expected_units:
        clip_norm = config.central.clip_norm or mean_clip_norm(data.channels, config.central.size)
        pixels = pixel_noise(
            central.expected_units, central.noise_multiplier or 0.0, clip_norm, data.classes, central.steps
        )
    if private and private.expected_units and private.noise_multiplier:
        dropout = config.private.label_dropout + (config.warmup.label_dropout if config.warmup else 0)
        size = network_size(
            model.channels, data.size, data.channels, data.classes + (dropout > 0),
            blocks=model.blocks, attention=model.attention,
        )  # fmt: skip
        step = step_signal(private.expected_units, private.noise_multiplier, size.parameters)
        run = step * sqrt(private.steps)
    return NoiseFigures(pixels, step, run)


def described(plan: Plan) -> str:
    """Return the plan as a table to read, with the noise that other budgets would need."""
    lines = [TABLE_HEAD] + [
        (
            row.name,
            row.mechanism.replace("_", " "),
            _short(row.sample_rate),
            _short(row.noise_multiplier),
            str(row.steps),
            _short(row.expected_units),
            rounded_up(row.epsilon_alone, 5),
            f"{row.epsilon_alone / plan.budget:.0%}",
        )
        for row in plan.phases
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    others = [
        f"ε = {budget:g}: "
        + (
            "the phases before DP-SGD cost as much alone"
            if noise is None
            else f"{'≤ ' * (budget >= EXACT_BELOW)}{noise:.3g}"
        )
        for budget, noise in other_budgets(plan)
    ]
    table.append(
        f"\ntotal: ε = {rounded_up(plan.epsilon)} of {as_typed(plan.budget)} at δ = {as_typed(plan.delta)} "
        f"({plan.accountant})"
    )
    if len(plan.events()) > 1:
        table.append("(phases compose to less than their sum, so the percentages add up to more than 100 %)")
    table.append(_meaning(plan))
    if others:
        table.append("noise multipliers for other budgets (≤: by RDP, an upper bound): " + "; ".join(others))
    return "\n".join(table)


def _meaning(plan: Plan) -> str:
    """Return what ε means to an attacker who tests for one unit, whatever the method."""
    found = detection_bound(plan.events(), plan.epsilon, ALARMS)
    rates = "; ".join(
        f"{at_most(rate)} at {alarms:.1%} false alarms" for alarms, rate in zip(ALARMS, found, strict=True)
    )
    return (
        "that means: someone who knows every other unit, and tests the release for one unit's presence, detects it at "
        f"most this often, whatever the method:\n  {rates}"
    )


def signal_to_noise(config: Config) -> float | None:
    """Return the largest mean of an embedding's value over its noise, for classes of equal size; None without one.

    A class's share of the units times z's values of at most 1/√F, against σ/units. Real means are a few times smaller.
    """
    if (frequency := config.frequency) is None:
        return None
    data = config.data
    return data.units / (data.classes * frequency.noise_multiplier * sqrt(frequency.features))


def signal_line(config: Config) -> str | None:
    """Return a line on whether the embedding's signal is above its noise, or None without a frequency phase."""
    if (ratio := signal_to_noise(config)) is None:
        return None
    line = f"frequency: signal to noise per value of the embedding is at most {ratio:.2g}"
    if ratio >= 1:
        return line
    return (
        f"warning: {line}, below 1: too few units per class for this noise; leave the phase out (frequency=null), or "
        "lower frequency.noise_multiplier or frequency.features"
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _noise_for(
    before: list[PrivacyEvent], private: PrivacyEvent, budget: float, delta: float
) -> float | None:
    solve = solve_noise_multiplier if budget < EXACT_BELOW else solve_noise_multiplier_rdp
    try:
        return solve(before, private.sample_rate, private.count, budget, delta)
    except AccountingError:
        return None


def _given(config: Config, phase: PhaseName) -> PrivacyEvent:
    """Return the event of a phase whose noise multiplier is an option."""
    options, count, privacy = getattr(config, phase), PHASES[phase].count, config.privacy
    noise = options.noise_multiplier
    if count is None:
        event = PrivacyEvent(phase, "gaussian", 1.0, noise, 1)
        cause, remedy = f"{phase}.noise_multiplier = {noise:g} costs", "raise one of them"
    else:
        uses, rate = getattr(options, count), options.sample_rate
        event = PrivacyEvent(phase, "subsampled_gaussian", rate, noise, uses)
        given = f"{phase}.{count} = {uses}, {phase}.sample_rate = {rate:g}"
        cause = f"{given} and {phase}.noise_multiplier = {noise:g} cost"
        remedy = "lower the first two, or raise one of the others"
    with _about(f"{phase}.noise_multiplier"):
        alone = epsilon([event], privacy.delta)
    if alone >= privacy.epsilon:
        raise BudgetTooSmall(
            f"{cause} ε = {rounded_up(alone)} alone, but privacy.epsilon is {as_typed(privacy.epsilon)}: {remedy}"
        )
    return event


def _solved(config: Config, before: list[PrivacyEvent]) -> PrivacyEvent:
    """Return DP-SGD's event, with the smallest noise for which it and the events before it keep to the budget."""
    private, privacy = config.private, config.privacy
    with _about("private.steps and private.sample_rate"):
        noise = solve_noise_multiplier(
            before, private.sample_rate, private.steps, privacy.epsilon, privacy.delta
        )
        return PrivacyEvent(SOLVED, "subsampled_gaussian", private.sample_rate, noise, private.steps)


def _row(config: Config, phase: PhaseName, event: PrivacyEvent | None) -> PlannedPhase:
    if event is None:
        count = PHASES[phase].count
        steps = getattr(getattr(config, phase), count) if count else 1
        return PlannedPhase(phase, "post_processing", None, None, steps, 0.0, None)
    return PlannedPhase(
        phase,
        event.mechanism,
        event.sample_rate,
        event.noise_multiplier,
        event.count,
        epsilon([event], config.privacy.delta),
        event.sample_rate * config.data.units,
    )


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Prefix the accountant's errors with the config key that they are about."""
    try:
        yield
    except AccountingError as error:
        raise type(error)(f"{key}: {error}") from None
