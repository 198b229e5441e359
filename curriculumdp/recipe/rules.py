"""The rules: each option of a run from what is public about it, with the reason. PUBLIC; sees no data, needs no torch.

A user must not tune on private images: every run that is looked at is charged. `docs/recipes.md` has the evidence for
each rule, and says what was not measured.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache, cached_property
from math import floor, log10, sqrt

from curriculumdp.errors import UserError
from curriculumdp.privacy.accountant import epsilon_rdp
from curriculumdp.privacy.calibrate import BudgetTooSmall, solve_noise_multiplier_rdp
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.recipe.network_size import NetworkSize, network_size
from curriculumdp.recipe.signal import FAIR_PIXEL_NOISE, mean_clip_norm, pixel_noise, run_signal

# Floating-point operations per second of a training step, per device. cpu: per core, of the runs of
# configs/digits.yaml and configs/fashion_mnist_cpu.yaml on an AMD EPYC (bench/results/*.csv: operations by
# `network_size` per train_cpu_seconds). cuda: 2000 images of 28 px in 40 ms on an
# H100, which is aimed at, NOT measured.
SPEED = {"cpu": 34e9, "cuda": 1.8e14}
PRIVATE_SHARE = 0.75  # of the time; the rest is for the warm-up, queries and sampling
MIN_SIGNAL = 5.0  # of the whole run: digits at ε = 10 have 6
STEP_SIGNAL = 0.5  # that of digits: with less, fewer steps
SATURATED = 2.5  # the noise multiplier above which a larger batch gains under 5 % of signal
SATURATED_DRAWS = 4
MAX_DRAWS, MAX_RATE = 32, 0.4
MIN_STEPS, MAX_STEPS = 100, 2250
WIDTHS = (64, 32, 16, 8)  # of the finest level


@dataclass(frozen=True)
class Asked:
    """What is public about the data and the machine. hours: of training, on `cores` CPU cores or one GPU."""

    units: int
    classes: int
    size: int
    channels: int
    epsilon: float
    device: str = "cpu"
    cores: int = 2
    hours: float = 0.1

    @property
    def units_per_class(self) -> float:
        """The number that decides what a class's central image is worth."""
        return self.units / self.classes

    @property
    def speed(self) -> float:
        """Floating-point operations per second."""
        return SPEED[self.device] * (self.cores if self.device == "cpu" else 1)


@dataclass(frozen=True)
class Net:
    """A U-Net's options and size."""

    channels: tuple[int, ...]
    blocks: int
    attention: int
    size: NetworkSize


@dataclass(frozen=True)
class Queries:
    """The central phase's options."""

    sample_rate: float
    noise_multiplier: float
    queries: int
    size: int
    median: int

    @property
    def event(self) -> PrivacyEvent:
        """What the queries are charged."""
        return PrivacyEvent(
            "central", "subsampled_gaussian", self.sample_rate, self.noise_multiplier, self.queries
        )


@dataclass(frozen=True)
class Work:
    """DP-SGD's options. noise_multiplier: by RDP; the plan solves it again, exactly."""

    steps: int
    sample_rate: float
    draws: int
    noise_multiplier: float


class Recipe:
    """A run's options by rule."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    @cached_property
    def delta(self) -> float:
        """δ: the largest power of ten that is at most half of 1/units."""
        return float(f"1e{floor(log10(0.5 / self.asked.units))}")

    @cached_property
    def queries(self) -> Queries:
        """Few clean queries of every unit where classes are small; the paper's rate of a tenth where they are large.

        Their noise is the least that leaves DP-SGD its share of ε: small sets live on their central images.
        """
        asked = self.asked
        rate = _rounded(min(1.0, max(0.1, 600 / asked.units_per_class)))
        few = asked.units_per_class < 1000
        share = 0.45 if few else 0.2
        count = 3 if few else 5
        noise = self._cheapest_noise(rate, count, share)
        size = asked.size if asked.size <= 16 else asked.size // 2
        while size > 8 and size % 2 == 0 and self._pixel_noise(rate, noise, count, size) > FAIR_PIXEL_NOISE:
            size //= 2
        return Queries(rate, noise, count, size, median=1 if asked.size < 28 else 3)

    def pixel_noise(self) -> float:
        """Return the noise of a class's mean central image, per pixel."""
        queries = self.queries
        return self._pixel_noise(queries.sample_rate, queries.noise_multiplier, queries.queries, queries.size)

    def _pixel_noise(self, rate: float, noise: float, queries: int, size: int) -> float:
        asked = self.asked
        clip_norm = mean_clip_norm(asked.channels, size)
        return pixel_noise(rate * asked.units, noise, clip_norm, asked.classes, queries)

    def _cheapest_noise(self, rate: float, queries: int, share: float) -> float:
        """Return the smallest noise multiplier of a geometric table that costs at most `share` of ε."""
        table = [_rounded(1.25**power) for power in range(-2, 40)]

        def affordable(noise: float) -> bool:
            event = PrivacyEvent("central", "subsampled_gaussian", rate, noise, queries)
            return epsilon_rdp([event], self.delta) <= share * self.asked.epsilon

        found = bisect_left(table, True, key=affordable)
        if found == len(table):
            raise UserError(f"--epsilon {self.asked.epsilon:g} leaves nothing for central images: raise it")
        return table[found]

    @cached_property
    def net(self) -> Net:
        """The widest U-Net that gets a draw per parameter in the time, and a signal above DP-SGD's noise."""
        nets = [_net(width, self.asked) for width in WIDTHS]
        for net in nets[:-1]:
            if self.images(net) >= net.size.parameters and self.signal(net) >= MIN_SIGNAL:
                return net
        return nets[-1]

    def images(self, net: Net) -> float:
        """Return the images, times draws, that DP-SGD can compute in the time."""
        return PRIVATE_SHARE * self.asked.hours * 3600 * self.asked.speed / net.size.flop_per_image

    def signal(self, net: Net) -> float:
        """Return the signal of the whole of DP-SGD over its noise."""
        return self._signal(self.work(net), net)

    def _signal(self, work: Work, net: Net) -> float:
        expected = work.sample_rate * self.asked.units
        return run_signal(work.steps, expected, work.noise_multiplier, net.size.parameters)

    @cache  # noqa: B019 (a recipe lives as long as its command)
    def work(self, net: Net) -> Work:
        """Return steps, rate and draws: twice as many units per step as steps, until a larger batch gains nothing.

        Beyond that point draws per unit gain more, and steps, as long as a step is not drowned in noise.
        """
        images = self.images(net)
        steps = _clamped(sqrt(images / 2), MIN_STEPS, MAX_STEPS)
        rate, noise = self._rate(images / steps, steps)
        if noise > 0.9 * SATURATED:
            reach = self._signal(Work(steps, rate, 1, noise), net)  # about the same for any number of steps
            most = _clamped((reach / STEP_SIGNAL) ** 2, MIN_STEPS, MAX_STEPS)
            steps = min(
                most, _clamped(images / (SATURATED_DRAWS * rate * self.asked.units), MIN_STEPS, MAX_STEPS)
            )
            rate, noise = self._rate(images / steps / SATURATED_DRAWS, steps)
        draws = _clamped(images / (steps * rate * self.asked.units), 1, MAX_DRAWS)
        return Work(steps, rate, draws, noise)

    def _rate(self, per_step: float, steps: int) -> tuple[float, float]:
        """Return the sample rate and its noise multiplier: at most `per_step` units, and no more than saturate."""
        rate = _rounded(min(per_step / self.asked.units, MAX_RATE, self._saturating_rate(steps)))
        return rate, self._noise(rate, steps)

    @cache  # noqa: B019
    def _saturating_rate(self, steps: int) -> float:
        """Return the rate whose noise multiplier is SATURATED, by bisection over RDP."""
        low, high = 1e-6, 1.0
        while high / low > 1.05:
            rate = sqrt(low * high)
            event = PrivacyEvent("private", "subsampled_gaussian", rate, SATURATED, steps)
            within = epsilon_rdp([self.queries.event, event], self.delta) <= self.asked.epsilon
            low, high = (rate, high) if within else (low, rate)
        return low

    @cache  # noqa: B019
    def _noise(self, rate: float, steps: int) -> float:
        budget, delta = self.asked.epsilon, self.delta
        try:
            return solve_noise_multiplier_rdp([self.queries.event], rate, steps, budget, delta)
        except BudgetTooSmall:  # by RDP, which is some 10 % too high
            return solve_noise_multiplier_rdp([], rate, steps, budget, delta)

    @cached_property
    def learning_rate(self) -> float:
        """Adam's: so that the run travels as far in few steps as the paper's does in 2250 at 3e-4."""
        return _rounded(min(3e-3, max(3e-4, 0.9 / self.work(self.net).steps)))

    @cached_property
    def decay(self) -> float:
        """Fraction of the steps with a falling rate: short runs decay, the paper's long ones do not."""
        return 0.6 if self.work(self.net).steps < 2000 else 0.0

    @cached_property
    def ema(self) -> float:
        """An average over a fifteenth of the steps: a longer one would still hold the initial weights."""
        return round(min(0.999, max(0.95, 1 - 15 / self.work(self.net).steps)), 4)

    @cached_property
    def levels(self) -> tuple[float, float]:
        """(p_mean, p_std): EDM's, shifted up where small images have less detail at low noise, and for a small ε."""
        size = self.asked.size
        mean, std = (-0.6, 1.0) if size <= 10 else (-0.9, 1.1) if size < 24 else (-1.2, 1.2)
        return (round(mean + 0.3, 2), std) if self.asked.epsilon <= 0.3 else (mean, std)

    @cached_property
    def warmup_steps(self) -> int:
        """As many as a fifth of the time allows, at most 2000."""
        images = 0.2 * self.asked.hours * 3600 * self.asked.speed / self.net.size.flop_per_image
        return _clamped(_rounded(images / 64), 200, 2000)

    @cached_property
    def microbatch(self) -> int:
        """Units: 2048 images at once on a GPU, 256 on a CPU."""
        at_once = 2048 if self.asked.device == "cuda" else 256
        return _clamped(at_once // self.work(self.net).draws, 8, 64 if self.asked.device == "cpu" else 256)


def _net(width: int, asked: Asked) -> Net:
    levels = 2 if asked.size < 32 else 3 if asked.size < 64 else 4
    # The paper's widest net has equal levels.
    deeper = width if width == WIDTHS[0] and levels < 4 else 2 * width
    channels = (width, *[deeper] * (levels - 1))
    blocks = 1 if width <= 16 else 2
    resolutions = [asked.size >> level for level in range(levels)]
    # Attention costs the square of its positions: the first level of at most 16 px, as in the paper, below the finest.
    attention = next((pixels for pixels in resolutions[1:] if pixels <= 16), resolutions[-1])
    size = network_size(
        channels,
        asked.size,
        asked.channels,
        asked.classes + 1,
        blocks=blocks,
        attention=(attention,),
    )
    return Net(channels, blocks, attention, size)


def _clamped(value: float, low: int, high: int) -> int:
    return int(min(max(round(value), low), high))


def _rounded(value: float) -> float:
    """Return `value` to two significant digits: a rule claims no more."""
    return float(f"{value:.2g}")
