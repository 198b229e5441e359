"""What a changed option means for a run that has begun, and which options may leave in a release. PUBLIC."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curriculumdp.config.config import Config
from curriculumdp.config.yaml_file import options_of, shown

Kind = Literal["neutral", "fresh", "refused"]


# Options that hold a path on the user's machine: they stay out of a release.
PATHS = ("run_dir", "data.path", "data.csv", "data.roster", "data.ledger")


@dataclass(frozen=True)
class Difference:
    """An option that has changed since the run began; `kind` states how resume treats the change."""

    key: str
    was: object
    now: object
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key} was {shown(self.was)} and is now {shown(self.now)}"


def resume_differences(saved: Mapping[str, Any], now: Config) -> list[Difference]:
    """Return the options that have changed since `saved`, in the config's order.

    saved: a `Config.resolved()`, possibly read back from JSON. An option missing on one side counts as None there;
    one unknown to this version is refused.
    """
    before, after = flattened(saved), flattened(now.resolved())
    kinds = {
        key: (field.json_schema_extra or {}).get("resume", "refused") for key, field in options_of(Config)
    }
    return [
        Difference(key, before.get(key), after.get(key), kinds.get(key, "refused"))
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key)
    ]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def fresh_options(config: Config) -> dict[str, Any]:
    """Return the options, by dotted key, whose change means new keys on resume."""
    values = flattened(config.resolved())
    return {
        key: values[key]
        for key, field in options_of(Config)
        if (field.json_schema_extra or {}).get("resume") == "fresh"
    }


def config_digest(config: Config) -> str:
    """Return the SHA-256 (hex) of the options that a run may not change."""
    blank = config.model_validate(config.resolved())
    options = {d.key for d in resume_differences({}, blank) if d.kind == "refused"}
    flat = {d.key: d.now for d in resume_differences({}, config) if d.key in options}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def without_paths(config: Config) -> dict[str, Any]:
    """Return the resolved config without paths on the user's machine, as a release holds it. PUBLIC."""
    values = config.resolved()
    for key in PATHS:
        section, _, last = key.rpartition(".")
        (values[section] if section else values).pop(last)
    if config.init_from is not None:
        values["init_from"] = Path(config.init_from).name or "unnamed"
    return values
