"""One whole run's options: the sections together, from a YAML file and `key.path=value` overrides. PUBLIC."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from curriculumdp.config.checks import disagreements
from curriculumdp.config.sections import (
    NEUTRAL,
    STAGES,
    CentralConfig,
    CheckpointConfig,
    ComputeConfig,
    DataConfig,
    Int,
    Line,
    LoggingConfig,
    ModelConfig,
    PrivacyConfig,
    PrivateConfig,
    SamplingConfig,
    Section,
    Stage,
    WarmupConfig,
)
from curriculumdp.config.yaml_file import and_more, read_values, validated


class Config(Section):
    """One whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="name of the run: letters, digits, dot, dash, underscore", json_schema_extra=NEUTRAL
    )
    run_dir: str = Field(
        default="", description="the run's folder (default: runs/<name>)", json_schema_extra=NEUTRAL
    )
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="seed of what touches no sensitive row: first weights, warm-up, sampling"
    )
    curriculum: tuple[Stage, ...] = Field(default=STAGES, description="the stages, in order")
    init_from: Line | None = Field(
        default=None, description="folder of a PUBLIC diffusers model to start from"
    )
    data: DataConfig = Field(description="the sensitive set")
    privacy: PrivacyConfig = Field(description="the budget")
    model: ModelConfig = Field(description="the U-Net")
    central: CentralConfig | None = Field(default=None, description="stage one, or null without it")
    warmup: WarmupConfig | None = Field(
        default=None, description="training on central images, or null without it"
    )
    private: PrivateConfig = Field(description="DP-SGD; its noise levels serve the warm-up too")
    compute: ComputeConfig = Field(description="devices, threads, precision")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="checkpoints")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="logs")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="the sample grid")

    @model_validator(mode="before")
    @classmethod
    def _default_folder(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("run_dir") in (None, ""):
            return {**values, "run_dir": f"runs/{values.get('name')}"}
        return values

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        found = list(disagreements(self))
        if found:
            raise ValueError(found[0] + and_more(len(found)))
        return self

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, as JSON knows it."""
        return self.model_dump(mode="json")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The run that a YAML file describes, with `key.path=value` overrides (their values are YAML).

    Raises ConfigError, one line, for whatever is wrong with either.
    """
    return validated(Config, read_values(path, overrides), str(path))


def config_from(values: Mapping[str, Any], where: str) -> Config:
    """The run of a mapping such as `Config.resolved()` gives; `where` names its origin in a ConfigError."""
    return validated(Config, values, where)
