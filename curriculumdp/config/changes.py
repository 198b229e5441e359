"""What a change of an option means for a run that has begun, and what of the options may leave. PUBLIC."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curriculumdp.config.config import Config
from curriculumdp.config.yaml_file import options_of, shown

Kind = Literal["neutral", "fresh", "refused"]


# What names a place on the user's machine, and hence stays out of a release.
PATHS = ("run_dir", "data.path", "data.csv", "data.roster", "data.ledger")


@dataclass(frozen=True)
class Difference:
    """An option that is not what it was when the run began; `kind` says what resume makes of it."""

    key: str
    was: object
    now: object
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key} was {shown(self.was)} and is now {shown(self.now)}"


def resume_differences(saved: Mapping[str, Any], now: Config) -> list[Difference]:
    """What has changed since `saved` (a `Config.resolved()`, perhaps through JSON), in the config's order.

    An option that one side lacks counts as None there; one that this version does not know is refused.
    """
    before, after = _flattened(saved), _flattened(now.resolved())
    kinds = {
        key: (field.json_schema_extra or {}).get("resume", "refused") for key, field in options_of(Config)
    }
    return [
        Difference(key, before.get(key), after.get(key), kinds.get(key, "refused"))
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key)
    ]


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def fresh_options(config: Config) -> dict[str, Any]:
    """Return the options, by dotted key, a change of which takes new keys on resume."""
    values = _flattened(config.resolved())
    return {
        key: values[key]
        for key, field in options_of(Config)
        if (field.json_schema_extra or {}).get("resume") == "fresh"
    }


def without_paths(config: Config) -> dict[str, Any]:
    """PUBLIC: the resolved config less what names places on the user's machine, for the release."""
    values = config.resolved()
    for key in PATHS:
        section, _, last = key.rpartition(".")
        (values[section] if section else values).pop(last)
    if config.init_from is not None:
        values["init_from"] = Path(config.init_from).name or "unnamed"
    return values
