"""What a run will cost, before any training: both stages under one budget. Sees no data, imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from curriculumdp.config import Config
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.calibrate import solve_noise_multiplier
from curriculumdp.privacy.release import Release


@dataclass(frozen=True)
class PlannedPhase:
    """One phase; a phase that spends nothing has no mechanism, rate or noise."""

    name: str
    mechanism: str | None
    sample_rate: float | None
    noise_multiplier: float | None
    steps: int
    epsilon_alone: float


@dataclass(frozen=True)
class Plan:
    """All of a run's phases and what they cost together."""

    phases: tuple[PlannedPhase, ...]
    epsilon: float
    delta: float

    def phase(self, name: str) -> PlannedPhase:
        return next(phase for phase in self.phases if phase.name == name)

    def releases(self) -> list[Release]:
        return [
            Release(p.name, p.mechanism, p.sample_rate, p.noise_multiplier, p.steps)
            for p in self.phases
            if p.mechanism is not None
        ]

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Plan":
        return cls(tuple(PlannedPhase(**row) for row in record["phases"]), record["epsilon"], record["delta"])


def plan_curriculum(config: Config) -> Plan:
    rows: list[PlannedPhase] = []
    fixed: list[Release] = []
    delta = config.privacy.delta
    for name in config.curriculum:
        if name == "central":
            c = config.central
            fixed.append(Release(name, "subsampled_gaussian", c.sample_rate, c.noise_multiplier, c.queries))
            rows.append(PlannedPhase(name, "subsampled_gaussian", c.sample_rate, c.noise_multiplier, c.queries, epsilon(fixed, delta)))
        elif name == "warmup":
            rows.append(PlannedPhase(name, None, None, None, config.warmup.steps, 0.0))
        else:
            p = config.private
            sigma = solve_noise_multiplier(fixed, p.sample_rate, p.steps, config.privacy.epsilon, delta)
            fixed.append(Release(name, "subsampled_gaussian", p.sample_rate, sigma, p.steps))
            rows.append(PlannedPhase(name, "subsampled_gaussian", p.sample_rate, sigma, p.steps, epsilon(fixed[-1:], delta)))
    return Plan(tuple(rows), epsilon(fixed, delta), delta)
