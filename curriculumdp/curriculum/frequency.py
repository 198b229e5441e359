"""The frequency phase: one noisy embedding per class, and images with that embedding (FETA-Pro, USENIX Security 2026).

The mean random-Fourier embedding of all units is released once, at a sample rate of 1; its projection is public. A
small generator is then fitted to what was released, and images are drawn from it. That is post-processing: a function
of the release and the config's seed. Rank 0 computes both the sum and the fit.
"""

import torch
from torch import Tensor

from curriculumdp.config.data_section import DataConfig
from curriculumdp.config.sections import FrequencyConfig
from curriculumdp.curriculum.embedding import CLIP_NORM, UNITS_AT_ONCE, Embedding, embedded_sum
from curriculumdp.curriculum.preemption import launcher_is_gone
from curriculumdp.curriculum.run import Interrupted, Run
from curriculumdp.curriculum.state import CentralImages, State
from curriculumdp.curriculum.warmup import public_seed
from curriculumdp.diffusion.generator import draw_images, fit_generator
from curriculumdp.privacy.grid_noise import add_noise, from_grid
from curriculumdp.privacy.secret import KEY_BYTES


def bandwidth_of(config: FrequencyConfig, data: DataConfig) -> float:
    """Return the config's bandwidth, or else the paper's √105 at 28 x 28 pixels, scaled by the root of their number.

    The squared distance of two images grows with their number of pixels.
    """
    return config.bandwidth or (105 * data.channels * data.size**2 / 784) ** 0.5


def embedding_of(config: FrequencyConfig, data: DataConfig, seed: int) -> Embedding:
    """Return the embedding of a run: a function of its config alone. PUBLIC."""
    pixels = data.channels * data.size**2
    return Embedding(seed, config.features, bandwidth_of(config, data), pixels, data.classes)


class FrequencyPhase:
    """The frequency phase: one step, which makes `state.embedding` and `state.frequency`."""

    name = "frequency"
    steps = 1

    def __init__(self, run: Run) -> None:
        config = run.config.frequency
        assert config is not None
        self.config, self.data, self.seed = config, run.config.data, run.config.seed
        planned = run.plan.phase(self.name).event
        assert planned is not None
        self.event = planned
        self.embedding = embedding_of(config, run.config.data, run.config.seed)

    def begin(self, run: Run, state: State) -> None:
        """Do nothing: an embedding that is already in the state was released, and its fit was interrupted."""

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        if not len(state.embedding):
            state.embedding = self.release(run, step)
        drawn = run.world.from_main(lambda: self._drawn(run, state.embedding, self.config.fit_steps))
        if not drawn:
            raise Interrupted(self.name)
        state.frequency = self._images(drawn)
        return {}

    def release(self, run: Run, step: int) -> Tensor:
        """Charge and return the noisy sum over all units, int64 [classes·2F], the same on every rank. PUBLIC."""
        units = torch.arange(self.data.units if run.world.is_main else 0)
        mine = embedded_sum(self.embedding, run.images, units).to(run.world.device)
        return run.noisy_sum(self.event, step, CLIP_NORM, mine).cpu()

    def target(self, noisy: Tensor) -> Tensor:
        """Return the mean embedding per class, float64 [classes, 2F]: the denominator is the public number of units."""
        return from_grid(noisy, CLIP_NORM).view(self.data.classes, -1) / self.data.units

    def shares(self) -> Tensor:
        """Return the classes' public shares of the units, equal where the config states no counts: fp32 [classes]."""
        counts = torch.tensor(self.data.class_counts or (1,) * self.data.classes, dtype=torch.float64)
        return (counts / counts.sum()).float()

    def _drawn(self, run: Run, noisy: Tensor, steps: int) -> bytes:
        """Fit the generator and return the bytes of the images drawn from it, none if the run should stop."""
        device = run.world.device
        generator = fit_generator(
            self.target(noisy).float().to(device),
            self.embedding.radians().float().to(device),
            self.shares().to(device),
            (self.data.channels, self.data.size),
            steps=steps,
            seed=public_seed(self.seed, "frequency fit"),
            stop=lambda: run.stopping.is_set() or launcher_is_gone(),
        )
        if generator is None:
            return b""
        images, _ = draw_images(generator, self.config.images, public_seed(self.seed, "frequency images"))
        return images.numpy().tobytes()

    def _images(self, drawn: bytes) -> CentralImages:
        count, data = self.config.images, self.data
        images = torch.frombuffer(bytearray(drawn), dtype=torch.uint8)
        shape = (count, data.channels, data.size, data.size)
        return CentralImages(images.view(shape), torch.arange(count) % data.classes)

    def rehearse(self, run: Run, state: State) -> str | None:
        units = torch.arange(min(UNITS_AT_ONCE, run.images.unit_count))
        noisy = add_noise(
            embedded_sum(self.embedding, run.images, units), self.event.noise_multiplier, bytes(KEY_BYTES)
        )
        state.frequency = self._images(self._drawn(run, noisy, 1))
        return None

    def sync(self, run: Run, state: State) -> None:
        """Do nothing: every rank has added the same noise to the same sum, and received the same images."""
