"""A privacy event as accountants see it: a mechanism, its parameters, and how often it was used."""

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Literal, get_args

from curriculumdp.errors import UserError

Mechanism = Literal["gaussian", "subsampled_gaussian"]

# Below 0.1, one use without sampling costs ε > 90 at δ = 1e-5, and its loss distribution takes seconds.
MIN_NOISE_MULTIPLIER = 0.1
# Above these, accountants lose precision or take too long (dp_accounting raises an int to the count's power).
MAX_NOISE_MULTIPLIER = 1e6
MAX_COUNT = 10**6
# The max that a certificate states.
MAX_CERTIFIED_CLIP_NORM = 1e12
# The losses of one use are truncated where e⁻⁵⁰ of their mass is left, up to 4e-16 in 10⁶ uses: negligible
# for a δ of at least this.
MIN_DELTA = 1e-10


class AccountingError(UserError):
    """Values from which no accountant can derive a guarantee; the message is one line."""


@dataclass(frozen=True)
class PrivacyEvent:
    """`count` uses of one mechanism on a sum of L2 sensitivity C. PUBLIC.

    gaussian: N(0, (noise_multiplier·C)²) on the sum of all units. subsampled_gaussian: the same on the sum of
    a Poisson sample, fresh at each use, that contains each unit with probability `sample_rate`. A `count` of 0
    costs nothing. Raises AccountingError for values that the accountants do not support.
    """

    name: str
    mechanism: Mechanism
    sample_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise AccountingError(f"an event's name is {self.name!r}: must be a non-empty string")
        if self.mechanism not in get_args(Mechanism):
            allowed = " or ".join(get_args(Mechanism))
            raise AccountingError(f"{self.name}.mechanism is {self.mechanism!r}: must be {allowed}")
        if not (_is_number(self.sample_rate) and 0 < self.sample_rate <= 1):
            raise self._refused("sample_rate", "must be a number in (0, 1]")
        if self.mechanism == "gaussian" and self.sample_rate != 1:
            raise self._refused("sample_rate", "must be 1 for gaussian, which takes all units")
        low, high = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
        if not (_is_number(self.noise_multiplier) and low <= self.noise_multiplier <= high):
            raise self._refused(
                "noise_multiplier",
                f"must be a number in [{low:g}, {high:g}]; less noise leaves no privacy",
            )
        if (
            not isinstance(self.count, int)
            or isinstance(self.count, bool)
            or not 0 <= self.count <= MAX_COUNT
        ):
            raise self._refused("count", f"must be an integer in [0, {MAX_COUNT}]")

    def _refused(self, field: str, allowed: str) -> AccountingError:
        return AccountingError(f"{self.name}.{field} is {getattr(self, field)!r}: {allowed}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded_up(value: float, digits: int = 6) -> str:
    """Return an ε or a δ as text of at most `digits` significant digits that is never below `value`.

    A value that has no more digits than that is shown as typed: 0.1 is 0.1, though its binary form is larger.
    """
    exact = Decimal(repr(float(value)))
    last = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(last, ROUND_CEILING)):.{digits}g}"


def as_typed(value: float) -> str:
    """Return a setting as text that reads back as `value`: 6.0 gives 6, and 1.0000049 keeps all its digits."""
    return repr(value).removesuffix(".0")
