"""How much of a run is left above its noise, from public figures alone. PUBLIC."""

from dataclasses import dataclass
from math import sqrt

# Signals below these mean noise; noise above these hides a picture: docs/recipes.md, "How much is too little".
LOW_STEP_SIGNAL, LOW_RUN_SIGNAL = 0.2, 2.0
FAIR_PIXEL_NOISE, HIGH_PIXEL_NOISE = 0.1, 0.2


def step_signal(expected_units: float, noise_multiplier: float, parameters: int) -> float:
    """Return the norm of a step's clipped sum, if all gradients agreed, over the norm of its noise, σC√P."""
    return expected_units / (noise_multiplier * sqrt(parameters))


def run_signal(steps: int, expected_units: float, noise_multiplier: float, parameters: int) -> float:
    """Return the signal of `steps` steps over their noise: signals add up, noise adds up as a root."""
    return sqrt(steps) * step_signal(expected_units, noise_multiplier, parameters)


def mean_clip_norm(channels: int, size: int) -> float:
    """Return the default clip norm of a central mean: no pixel is further than 0.5 from grey."""
    return 0.5 * sqrt(channels * size**2)


def pixel_noise(
    expected_units: float, noise_multiplier: float, clip_norm: float, classes: int, queries: int
) -> float:
    """Return the standard deviation, per pixel, of the mean of a class's central images; black is 0, white 1."""
    return noise_multiplier * clip_norm * classes / expected_units / sqrt(queries)


@dataclass(frozen=True)
class NoiseFigures:
    """pixels: `pixel_noise` of the central images; step, run: signals of DP-SGD. None for a phase that is left out."""

    pixels: float | None
    step: float | None
    run: float | None

    def line(self) -> str:
        """Return the figures as a line to read."""
        parts = []
        if self.pixels is not None:
            parts.append(
                f"noise of the central images {self.pixels:.2g} per pixel, where black is 0 and white 1"
            )
        if self.step is not None and self.run is not None:
            parts.append(f"signal over noise of DP-SGD {self.step:.2g} per step, {self.run:.2g} for the run")
        return "; ".join(parts)

    def warnings(self) -> list[str]:
        """Return a line for each part of a run that its noise will drown, with the figure it goes by."""
        found = []
        if self.pixels is not None and self.pixels > HIGH_PIXEL_NOISE:
            found.append(
                f"expect noisy central images: their noise is {self.pixels:.2g} per pixel, where black is 0 and white "
                f"1; above {HIGH_PIXEL_NOISE:g} little can be seen (more units per class, a larger ε, or a smaller "
                "central.size)"
            )
        if self.run is not None and self.run < LOW_RUN_SIGNAL:
            found.append(
                f"expect noise from DP-SGD: its signal over its noise is {self.run:.2g} for the whole run, and below "
                f"{LOW_RUN_SIGNAL:g} it harms more than it helps (more units, a larger ε, a smaller network, or "
                "curriculum=[central,warmup])"
            )
        elif self.step is not None and self.step < LOW_STEP_SIGNAL:
            found.append(
                f"noise drowns each step of DP-SGD: its signal over its noise is {self.step:.2g}, and below "
                f"{LOW_STEP_SIGNAL:g} images suffer (a larger private.sample_rate and fewer private.steps; "
                "launch/new.py writes a config by rule)"
            )
        return found
