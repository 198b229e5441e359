"""A new run's config from what is public about its images: `launch/new.py`. PUBLIC: it reads no image."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from curriculumdp.config.config import Config
from curriculumdp.config.yaml_file import ConfigError, parse_yaml, validated
from curriculumdp.curriculum.plan import noise_figures, plan_curriculum
from curriculumdp.recipe.rules import Asked, Recipe
from curriculumdp.recipe.written import written

HOURS = {"cpu": 0.1, "cuda": 1.0}
MAX_HOURS = 1e4


def new_config(given: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return a config by rule, as YAML, and the lines that say where noise will drown the images.

    given: the options of `launch/new.py`. Raises ConfigError, one line, that names the option.
    """
    hours = given["hours"] if given["hours"] is not None else HOURS[given["device"]]
    for option, value, least, most in (
        ("units", given["units"], 2, 10**9),
        ("classes", given["classes"], 1, given["units"]),
        ("size", given["size"], 8, 256),
        ("epsilon", given["epsilon"], 0.01, 100),
        ("hours", hours, 0.001, MAX_HOURS),
        ("cores", given["cores"], 1, 1024),
    ):
        if not (isfinite(value) and least <= value <= most):
            raise ConfigError(f"--{option} is {value:g}: must be from {least:g} to {most:g}")
    if given["size"] % 2:
        raise ConfigError(f"--size is {given['size']}: must be even, since the network halves the image")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", given["name"]):
        raise ConfigError(f"--name is {given['name']!r}: use letters, digits, dot, dash and underscore")
    if not given["path"] and given["source"] != "digits":
        raise ConfigError("--path is missing: name the folder or file of the images")
    public = ("units", "classes", "size", "channels", "epsilon", "device", "cores")
    recipe = Recipe(Asked(**{key: given[key] for key in public}, hours=hours))
    keys = ("source", "path", "csv", "roster", "units", "unit", "classes", "channels", "size")
    data = {key: given[key] for key in keys if given[key] is not None} | _other_options(given["data"])
    text = written(recipe, given["name"], data)
    config = validated(Config, parse_yaml(text.encode(), "the new config"), "the new config")
    return text, noise_figures(config, plan_curriculum(config)).warnings()


def _other_options(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the options of the data that are given as data.key=value."""
    found = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        section, _, name = key.partition(".")
        if section != "data" or not name or not equals:
            raise ConfigError(f"{override!r}: only options of the data are given so, as data.key=value")
        found[name] = parse_yaml(value, override)
    return found
