"""Every option of a run, as frozen pydantic models; an error is one line that names the option and the fix.

A config file describes one complete run. Each option states how resume treats a change of it: *neutral* (changes
nothing that is released), *fresh* (a new incarnation of the keys, design D1) or, by default, *refused*. Everything
here is public. Imports neither torch nor numpy: `launch/plan.py` runs without them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from curriculumdp.config.data_section import DataConfig
from curriculumdp.config.values import (
    FRESH,
    NEUTRAL,
    ClipNorm,
    Count,
    Float,
    Int,
    Line,
    NotNegative,
    PathName,
    Positive,
    Rate,
    SamplerName,
    Section,
    Share,
    at_home,
)
from curriculumdp.phases import DEFAULT_CURRICULUM, PhaseName
from dpkernels.limits import MAX_UNITS


class PrivacyConfig(Section):
    """The budget of the whole run, all phases together."""

    epsilon: Positive = Field(description="the budget ε of the whole run, central queries included")
    delta: Annotated[Float, Field(gt=0, lt=1)] = Field(description="δ of the whole run, well below 1/units")


class ModelConfig(Section):
    """The U-Net."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        description="channels of each level, finest first"
    )
    blocks: Annotated[Int, Field(ge=1, le=64)] = Field(default=2, description="residual blocks per level")
    attention: tuple[Count, ...] = Field(
        default=(), description="resolutions, in pixels, of the levels with self-attention"
    )
    groups: Count | None = Field(
        default=None, description="number of groups of every GroupNorm (default: narrowest level / 4)"
    )

    @property
    def norm_groups(self) -> int:
        """Return the number of groups of every GroupNorm: `groups`, or EDM's default."""
        return self.groups or max(1, min(self.channels) // 4)


class CentralConfig(Section):
    """The central phase: noisy aggregates of Poisson samples of units."""

    statistic: Literal["mean", "mode"] = Field(
        default="mean", description="mean of the images, or the most frequent bin of each pixel"
    )
    sample_rate: Rate = Field(description="probability that a unit is in a query, independent per query")
    noise_multiplier: Positive = Field(description="noise standard deviation divided by the clip norm")
    queries: Count = Field(description="number of queries; each gives one image per class")
    size: Annotated[Int, Field(ge=1)] = Field(
        description="height and width at which images are aggregated, in pixels"
    )
    clip_norm: ClipNorm | None = Field(
        default=None, description="max L2 norm of a unit's vector (default: 0.5·√d for mean, √d for mode)"
    )
    bins: Annotated[Int, Field(ge=2, le=256)] = Field(default=16, description="bins of the mode's histogram")
    count_weight: NotNegative | None = Field(
        default=None,
        description="weight of one noisy count per class in the mean's vector; 0: divide by public counts, or by "
        "units/classes (default: 1, but 0 with data.class_counts or statistic=mode)",
    )
    count_floor: Positive = Field(default=1.0, description="min denominator of a class's mean")
    median: Count = Field(
        default=3, description="width of the median filter after up-sampling: odd, 1 for none"
    )


class FrequencyConfig(Section):
    """The frequency phase: a noisy embedding, made into images; classes count as equal without data.class_counts."""

    noise_multiplier: Positive = Field(description="noise standard deviation divided by the clip norm, 1")
    features: Annotated[Int, Field(ge=1, le=2**17)] = Field(
        default=5000,
        description="random frequencies; the embedding has a cosine and a sine of each per class",
    )
    bandwidth: Annotated[Float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="distance of images, pixels in [0, 1], that the embedding tells apart (default: √(105·d/784))",
    )
    fit_steps: Count = Field(
        default=500, description="steps in which the generator is fitted; they cost nothing"
    )
    images: Count = Field(default=10_000, description="images drawn from the generator, for the warm-up")


class AugmentConfig(Section):
    """Mild random augmentation of the central images."""

    operations: Annotated[Int, Field(ge=1, le=7)] = Field(
        default=2, description="operations applied to each image"
    )
    magnitude: Annotated[Int, Field(ge=0, le=30)] = Field(default=3, description="strength, from 0 to 30")


class WarmupConfig(Section):
    """The warm-up: training on the central and frequency images, which is post-processing and costs no privacy."""

    steps: Count = Field(description="number of steps")
    frequency_steps: Count | None = Field(
        default=None,
        description="how many of them, the last ones, use frequency images, without augmentation (default: all "
        "where there are no central images)",
    )
    batch: Count = Field(default=64, description="images per step")
    learning_rate: Positive = Field(description="Adam's learning rate")
    label_dropout: Share = Field(default=0.1, description="fraction of labels replaced by the null class")
    ema: Share = Field(default=0.999, description="decay of the moving average of the weights")
    perturbation: NotNegative = Field(
        default=0.0,
        description="ρ: take gradients at weights moved by ρ uphill (SAM), at twice the time; 0: at the weights",
    )
    augment: AugmentConfig = Field(
        default_factory=AugmentConfig, description="augmentation of the central images"
    )


class PrivateConfig(Section):
    """The private phase: DP-SGD. Its noise multiplier is solved from the budget, never set."""

    steps: Count = Field(description="number of steps")
    sample_rate: Rate = Field(
        description="probability that a unit is in a step; times data.units, the expected batch"
    )
    draws: Count = Field(description="noise multiplicity K: draws of image and noise level per unit and step")
    clip_norm: ClipNorm = Field(default=1.0, description="C: max L2 norm of a unit's gradient")
    learning_rate: Positive = Field(description="Adam's learning rate")
    decay: Annotated[Float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="fraction of the steps, at the end, over which the learning rate decays linearly to 0",
    )
    ema: Share = Field(
        default=0.999, description="decay of the moving average of the weights, which is what is released"
    )
    ema_width: Annotated[Float, Field(gt=0, le=0.25)] | None = Field(
        default=None,
        description="relative width σ_rel of a power-function average (EDM2), e.g. 0.1; null: constant decay `ema`",
    )
    p_mean: Float = Field(
        default=-1.2, description="mean of ln σ of the diffusion noise (EDM), in the warm-up too"
    )
    p_std: Positive = Field(default=1.2, description="standard deviation of ln σ (EDM), in the warm-up too")
    sigma_data: Positive = Field(default=3**-0.5, description="standard deviation of pixels in [-1, 1] (EDM)")
    noise_levels: Literal["independent", "spread"] = Field(
        default="independent",
        description="independent, or spread evenly over a unit's draws and, if most are in a step, over units",
    )
    label_dropout: Share = Field(
        default=0.0, description="fraction of draws whose label is replaced by the null class"
    )


class ComputeConfig(Section):
    """How the work is done. Changing a fresh option means new keys on resume, and repeated steps are charged again."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where to train", json_schema_extra=FRESH
    )
    threads: Annotated[Int, Field(ge=1, le=1024)] = Field(
        default=2, description="CPU threads of each process", json_schema_extra=FRESH
    )
    microbatch: Annotated[Int, Field(ge=1, le=MAX_UNITS)] = Field(
        description="units per microbatch, whose gradients are computed at once", json_schema_extra=FRESH
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="fp32, or bf16 by autocast", json_schema_extra=FRESH
    )
    memory_format: Literal["contiguous", "channels_last"] = Field(
        default="contiguous", description="memory layout of the images", json_schema_extra=FRESH
    )
    capture: bool = Field(
        default=True,
        description="on a GPU, replay each microbatch and each warm-up step as one CUDA graph",
        json_schema_extra=FRESH,
    )
    processes: Count | None = Field(
        default=None,
        description="number of processes that must have started (default: any number)",
        json_schema_extra=NEUTRAL,
    )
    join_minutes: Positive = Field(
        default=10.0,
        description="minutes to wait for all processes to come at the start",
        json_schema_extra=NEUTRAL,
    )


class CheckpointConfig(Section):
    """How often the state is saved, and how long it is kept."""

    every: Count = Field(default=100, description="steps between checkpoints", json_schema_extra=NEUTRAL)
    keep: Count = Field(
        default=2, description="number of newest checkpoints to keep", json_schema_extra=NEUTRAL
    )


class LoggingConfig(Section):
    """What is reported during training."""

    tensorboard: bool = Field(
        default=False, description="also write TensorBoard files", json_schema_extra=NEUTRAL
    )
    show_private_metrics: bool = Field(
        default=False,
        description="show losses on the console; the certificate then states it",
        json_schema_extra=NEUTRAL,
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(),
        description="trackers of experiments that get phase, step, ε, learning rate and options, paths left out",
        json_schema_extra=NEUTRAL,
    )
    track_private_metrics: bool = Field(
        default=False,
        description="trackers get losses too; the certificate then states that they were shown",
        json_schema_extra=NEUTRAL,
    )

    @property
    def gives_private_metrics(self) -> bool:
        """Return whether metrics computed without noise leave the run's private folder."""
        return self.show_private_metrics or self.track_private_metrics


class SamplingConfig(Section):
    """The sample grid of the release: post-processing."""

    sampler: SamplerName = Field(
        default="dpm",
        description="EDM sampler; churn is Heun with fresh noise added at each step",
        json_schema_extra=NEUTRAL,
    )
    steps: Annotated[Int, Field(ge=2, le=1000)] = Field(
        default=18, description="sampling steps", json_schema_extra=NEUTRAL
    )
    per_class: Annotated[Int, Field(ge=1, le=1000)] = Field(
        default=10, description="images per class in samples.png", json_schema_extra=NEUTRAL
    )


class Options(Section):
    """All options of one run, not yet checked against each other."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="name of the run: letters, digits, dot, dash, underscore", json_schema_extra=NEUTRAL
    )
    run_dir: PathName = Field(
        default="", description="the run's folder (default: runs/<name>)", json_schema_extra=NEUTRAL
    )
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="seed of all that touches no sensitive row: initial weights, warm-up, sampling"
    )
    curriculum: tuple[PhaseName, ...] = Field(default=DEFAULT_CURRICULUM, description="the phases, in order")
    init_from: Annotated[Line, AfterValidator(at_home)] | None = Field(
        default=None, description="folder of a PUBLIC diffusers model to start from"
    )
    data: DataConfig = Field(description="the sensitive set")
    privacy: PrivacyConfig = Field(description="the budget")
    model: ModelConfig = Field(description="the U-Net")
    central: CentralConfig | None = Field(
        default=None, description="queries for central images; null leaves the phase out"
    )
    frequency: FrequencyConfig | None = Field(
        default=None, description="a noisy embedding for frequency images; null leaves the phase out"
    )
    warmup: WarmupConfig | None = Field(
        default=None, description="training on central and frequency images; null leaves the phase out"
    )
    private: PrivateConfig = Field(description="DP-SGD; the warm-up uses its noise levels too")
    compute: ComputeConfig = Field(description="devices, threads, precision")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="checkpoints")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="logs")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="the sample grid")

    def resolved(self) -> dict[str, Any]:
        """Return every option with its value, in JSON types."""
        return self.model_dump(mode="json")
