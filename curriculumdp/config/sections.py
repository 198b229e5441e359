"""Every option of a run, as frozen pydantic models; a bad one ends in one line that names it and the fix.

A config file is one whole run. Each option says how resume takes a change of it: *neutral* (changes nothing
that is released), *fresh* (a new incarnation of the keys, design D1) or, by default, *refused*. Everything in
here is public. Imports neither torch nor numpy: `launch/plan.py` answers without them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from curriculumdp.phases import PHASE_NAMES, PhaseName
from curriculumdp.printable import require_line
from curriculumdp.privacy.event import CLIP_NORMS, MAX_CERTIFIED_CLIP_NORM
from dpkernels.limits import MAX_CLIP_NORM, MAX_UNITS, MIN_CLIP_NORM

NEUTRAL: dict[str, Any] = {"resume": "neutral"}


FRESH: dict[str, Any] = {"resume": "fresh"}


def _number(value: object) -> object:
    if isinstance(value, bool):  # YAML's yes and on; pydantic would read 1
        raise ValueError("must be a number, not true or false")
    return value


Float = Annotated[float, BeforeValidator(_number)]


Int = Annotated[int, BeforeValidator(_number)]


Count = Annotated[Int, Field(ge=1)]


Positive = Annotated[Float, Field(gt=0)]


NotNegative = Annotated[Float, Field(ge=0)]


Rate = Annotated[Float, Field(gt=0, le=1)]


Share = Annotated[Float, Field(ge=0, lt=1)]


# What the clipped sums carry and a certificate states: a value outside would fail after it was paid for.
CentralClipNorm = Annotated[Float, Field(ge=CLIP_NORMS[0], le=min(CLIP_NORMS[1], MAX_CERTIFIED_CLIP_NORM))]


PrivateClipNorm = Annotated[Float, Field(ge=MIN_CLIP_NORM, le=min(MAX_CLIP_NORM, MAX_CERTIFIED_CLIP_NORM))]


# That of `dataset_ledger.state_folder`, where it names a folder.
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


Line = Annotated[str, Field(min_length=1), AfterValidator(require_line)]


class Section(BaseModel):
    """A table of the config: frozen, no unknown key, no NaN, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class DataConfig(Section):
    """The sensitive set. Its declared shape and counts are public; the data must match them exactly."""

    source: Literal["digits", "idx", "npz", "image_folder"] = Field(
        description="which reader: digits (scikit-learn's), idx (MNIST's format), npz, image_folder"
    )
    path: str | None = Field(
        default=None, description="folder (idx, image_folder) or file (npz)", json_schema_extra=NEUTRAL
    )
    csv: str | None = Field(
        default=None,
        description="table with the columns path,label[,unit] beside image_folder's images",
        json_schema_extra=NEUTRAL,
    )
    roster: str | None = Field(
        default=None,
        description="public file of all unit ids, one a line: line i is unit i",
        json_schema_extra=NEUTRAL,
    )
    units: Count = Field(description="number of units (people; images where no units are given)")
    unit: Annotated[Line, Field(max_length=200)] = Field(
        "one image", description="what a unit is, in the certificate's words: 'all images of one patient'"
    )
    classes: Count = Field(description="number of classes; labels are 0..classes-1")
    channels: Literal[1, 3] = Field(description="1 for grey, 3 for RGB")
    size: Annotated[Int, Field(ge=4, le=1024)] = Field(
        description="height and width that the model sees, in pixels"
    )
    class_counts: tuple[Annotated[Int, Field(ge=0, le=10**12)], ...] | None = Field(
        default=None, description="units per class, only where they are public"
    )
    window: tuple[Float, Float] | None = Field(
        default=None, description="[low, high] of 16-bit values that become black and white"
    )
    name: DataName | None = Field(
        default=None, description="name of the data set in the ledger that composes runs on it"
    )
    ledger: str | None = Field(
        default=None,
        description="folder of that ledger, an absolute path (default: the user's state folder)",
        json_schema_extra=NEUTRAL,
    )
    budget: Annotated[Float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="ε that all runs on the named data set may cost together; launch/budget.py makes its ledger",
    )


class PrivacyConfig(Section):
    """What the whole run may cost, all phases together."""

    epsilon: Positive = Field(description="the budget ε of the whole run, central queries included")
    delta: Annotated[Float, Field(gt=0, lt=1)] = Field(description="δ, well below 1/units")


class ModelConfig(Section):
    """The U-Net."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        description="width of each level, the finest first"
    )
    blocks: Annotated[Int, Field(ge=1, le=64)] = Field(default=2, description="residual blocks a level")
    attention: tuple[Count, ...] = Field(
        default=(), description="resolutions in pixels at which levels attend to themselves"
    )
    groups: Count | None = Field(
        default=None, description="groups of every GroupNorm (default: narrowest level / 4)"
    )

    @property
    def norm_groups(self) -> int:
        """The number of groups of every GroupNorm; EDM's rule where the config leaves it open."""
        return self.groups or max(1, min(self.channels) // 4)


class CentralConfig(Section):
    """The central phase: noisy aggregates of Poisson samples of units."""

    statistic: Literal["mean", "mode"] = Field(
        default="mean", description="mean of images, or each pixel's commonest bin"
    )
    sample_rate: Rate = Field(description="probability that a unit is in a query, fresh for each query")
    noise_multiplier: Positive = Field(description="noise standard deviation over the clip norm")
    queries: Count = Field(description="number of queries; each gives one image a class")
    size: Annotated[Int, Field(ge=1)] = Field(
        description="height and width that images are averaged at, in pixels"
    )
    clip_norm: CentralClipNorm | None = Field(
        default=None, description="L2 bound of a unit's vector (default: 0.5·√d for mean, √d for mode)"
    )
    bins: Annotated[Int, Field(ge=2, le=256)] = Field(default=16, description="bins of the mode's histogram")
    count_weight: NotNegative = Field(
        default=0.0,
        description="weight of a noisy count a class in the mean's vector; 0 divides by public counts",
    )
    count_floor: Positive = Field(default=1.0, description="smallest denominator of a class's mean")
    median: Count = Field(
        default=3, description="width of the median filter after up-sampling; odd, 1 for none"
    )


class AugmentConfig(Section):
    """A mild random augmentation of central images."""

    operations: Annotated[Int, Field(ge=1, le=7)] = Field(
        default=2, description="operations applied to each image"
    )
    magnitude: Annotated[Int, Field(ge=0, le=30)] = Field(default=3, description="strength, of 30")


class WarmupConfig(Section):
    """Training on central images: post-processing, free of charge."""

    steps: Count = Field(description="number of steps")
    batch: Count = Field(default=64, description="images a step")
    learning_rate: Positive = Field(description="Adam's learning rate")
    label_dropout: Share = Field(default=0.1, description="share of labels replaced by the null class")
    ema: Share = Field(default=0.999, description="decay of the weights' moving average")
    augment: AugmentConfig = Field(
        default_factory=AugmentConfig, description="augmentation of central images"
    )


class PrivateConfig(Section):
    """The private phase: DP-SGD. Its noise multiplier is solved from the budget, never given."""

    steps: Count = Field(description="number of steps")
    sample_rate: Rate = Field(
        description="probability that a unit is in a step; times units: the expected batch"
    )
    draws: Count = Field(description="K: draws of image and noise level a unit and step")
    clip_norm: PrivateClipNorm = Field(default=1.0, description="C: L2 bound of a unit's gradient")
    learning_rate: Positive = Field(description="Adam's learning rate")
    decay: Annotated[Float, Field(ge=0, le=1)] = Field(
        default=0.0, description="last share of the steps, with decay to 0"
    )
    ema: Share = Field(
        default=0.999, description="decay of the weights' moving average, which is what is released"
    )
    p_mean: Float = Field(
        default=-1.2, description="mean of ln σ of the diffusion noise (EDM); the warm-up's too"
    )
    p_std: Positive = Field(default=1.2, description="standard deviation of ln σ (EDM); the warm-up's too")
    sigma_data: Positive = Field(default=3**-0.5, description="standard deviation of pixels in [-1, 1] (EDM)")
    label_dropout: Share = Field(default=0.0, description="share of draws whose label becomes the null class")


class ComputeConfig(Section):
    """How the work is done; a change of the fresh ones takes new keys on resume, and charges redone steps."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where to train", json_schema_extra=FRESH
    )
    threads: Annotated[Int, Field(ge=1, le=1024)] = Field(
        default=2, description="CPU threads of each process", json_schema_extra=FRESH
    )
    microbatch: Annotated[Int, Field(ge=1, le=MAX_UNITS)] = Field(
        description="units whose gradients are held at once", json_schema_extra=FRESH
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast", json_schema_extra=FRESH
    )
    memory_format: Literal["contiguous", "channels_last"] = Field(
        default="contiguous", description="layout of images in memory", json_schema_extra=FRESH
    )
    capture: bool = Field(
        default=True,
        description="on a GPU, replay a microbatch as one CUDA graph",
        json_schema_extra=FRESH,
    )
    processes: Count | None = Field(
        default=None,
        description="processes that must have started (default: any number)",
        json_schema_extra=NEUTRAL,
    )


class CheckpointConfig(Section):
    """How often the state goes to disk."""

    every: Count = Field(default=100, description="steps between checkpoints", json_schema_extra=NEUTRAL)
    keep: Count = Field(default=2, description="newest checkpoints that stay", json_schema_extra=NEUTRAL)


class LoggingConfig(Section):
    """What is told while training."""

    tensorboard: bool = Field(
        default=False, description="also write TensorBoard files", json_schema_extra=NEUTRAL
    )
    show_private_metrics: bool = Field(
        default=False,
        description="losses on the console; the certificate then says so",
        json_schema_extra=NEUTRAL,
    )


class SamplingConfig(Section):
    """The sample grid of the release: post-processing."""

    sampler: Literal["dpm", "heun", "euler", "churn"] = Field(
        default="dpm",
        description="EDM sampler; churn: Heun that adds fresh noise at each step",
        json_schema_extra=NEUTRAL,
    )
    steps: Annotated[Int, Field(ge=2, le=1000)] = Field(
        default=18, description="sampling steps", json_schema_extra=NEUTRAL
    )
    per_class: Annotated[Int, Field(ge=1, le=1000)] = Field(
        default=10, description="images a class in samples.png", json_schema_extra=NEUTRAL
    )


class Options(Section):
    """All options of one run, not yet held against each other."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="name of the run: letters, digits, dot, dash, underscore", json_schema_extra=NEUTRAL
    )
    run_dir: str = Field(
        default="", description="the run's folder (default: runs/<name>)", json_schema_extra=NEUTRAL
    )
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="seed of what touches no sensitive row: first weights, warm-up, sampling"
    )
    curriculum: tuple[PhaseName, ...] = Field(default=PHASE_NAMES, description="the phases, in order")
    init_from: Line | None = Field(
        default=None, description="folder of a PUBLIC diffusers model to start from"
    )
    data: DataConfig = Field(description="the sensitive set")
    privacy: PrivacyConfig = Field(description="the budget")
    model: ModelConfig = Field(description="the U-Net")
    central: CentralConfig | None = Field(
        default=None, description="queries for central images, or null without them"
    )
    warmup: WarmupConfig | None = Field(
        default=None, description="training on central images, or null without it"
    )
    private: PrivateConfig = Field(description="DP-SGD; its noise levels serve the warm-up too")
    compute: ComputeConfig = Field(description="devices, threads, precision")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="checkpoints")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="logs")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="the sample grid")

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, as JSON knows it."""
        return self.model_dump(mode="json")
