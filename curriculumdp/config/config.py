"""The options of a complete run, from a YAML file and `key.path=value` overrides. PUBLIC."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from curriculumdp.config.checks import disagreements
from curriculumdp.config.sections import Options
from curriculumdp.config.yaml_file import and_more, read_values, validated


class Config(Options):
    """The options of a complete run, checked against each other."""

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


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a run's config from a YAML file and `key.path=value` overrides (their values are YAML).

    Raises ConfigError, one line, if the file or an override is invalid.
    """
    return validated(Config, read_values(path, overrides), str(path))


def config_from(values: Mapping[str, Any], where: str) -> Config:
    """Build a config from a mapping such as `Config.resolved()`; a ConfigError names its origin, `where`."""
    return validated(Config, values, where)
