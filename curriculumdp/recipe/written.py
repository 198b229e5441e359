"""A recipe as a commented config. PUBLIC."""

import json
from collections.abc import Mapping
from typing import Any

from curriculumdp.recipe.rules import MIN_SIGNAL, Recipe

Section = Mapping[str, tuple[Any, str]]


def written(recipe: Recipe, name: str, data: Mapping[str, Any]) -> str:
    """Return the config as YAML: `data` as given, every other option by rule, each with its reason."""
    asked, net, queries = recipe.asked, recipe.net, recipe.queries
    work = recipe.work(net)
    expected = work.sample_rate * asked.units
    here = (
        f"{asked.cores} CPU cores"
        if asked.device == "cpu"
        else "one GPU (a speed that is aimed at, not measured)"
    )
    head = (
        f"# Written by launch/new.py: {asked.units} units in {asked.classes} classes, ε = {asked.epsilon:g}, about "
        f"{_hours(asked.hours)} on {here}.\n"
        "# Each option follows from these public figures by a rule of docs/recipes.md. Do not tune on private images:\n"
        "# every run that is looked at costs privacy. launch/plan.py prints the cost, and with --estimate the time.\n"
    )
    sections: dict[str, Section] = {
        "data": {key: (value, "") for key, value in data.items()},
        "privacy": {
            "epsilon": (asked.epsilon, "of the whole run"),
            "delta": (recipe.delta, "the largest power of ten that is at most half of 1/units"),
        },
        "model": {
            "channels": (list(net.channels), f"{net.size.parameters:,} parameters: {_why_net(recipe)}"),
            "blocks": (net.blocks, ""),
            "attention": ([net.attention], ""),
        },
        "central": {
            "statistic": ("mean", ""),
            "sample_rate": (queries.sample_rate, f"{queries.sample_rate * asked.units_per_class:.0f} units of a class"),
            "noise_multiplier": (queries.noise_multiplier, _why_noise(recipe)),
            "queries": (queries.queries, "few clean queries beat many noisy ones"),
            "size": (queries.size, "half the image, or less: less noise per pixel"),
            "median": (queries.median, "the paper's 3x3 filter wipes out strokes below 28 px"),
        },
        "warmup": {
            "steps": (recipe.warmup_steps, "a fifth of the time, at most the paper's 2000"),
            "batch": (64, ""),
            "learning_rate": (3e-4 if net.blocks > 1 else 1e-3, "the paper's for its network; small ones take more"),
            "label_dropout": (0.1, "as in DP-FETA"),
            "ema": (0.99, ""),
            "augment": (
                {"operations": 2, "magnitude": 10 if asked.size <= 10 else 3 if asked.channels == 1 else 9},
                "as in DP-FETA; more at 8 px",
            ),
        },
        "private": {
            "steps": (work.steps, f"of {expected:.0f} units: signal over noise {recipe.signal(net):.2g} for the run"),
            "sample_rate": (work.sample_rate, ""),
            "draws": (work.draws, "more only where more units gain nothing"),
            "clip_norm": (1.0, "as in DPDM and DP-FETA"),
            "learning_rate": (recipe.learning_rate, "short runs take a high rate that decays"),
            "decay": (recipe.decay, ""),
            "ema": (recipe.ema, "over a fifteenth of the steps"),
            "p_mean": (recipe.levels[0], "EDM's noise levels; higher for small images and small ε"),
            "p_std": (recipe.levels[1], ""),
        },
        "compute": _compute(recipe),
        "checkpoint": {"every": (max(10, work.steps // 12), ""), "keep": (2, "")},
    }  # fmt: skip
    return head + f"name: {name}\nseed: 0\n" + "".join(_section(*item) for item in sections.items())


def _compute(recipe: Recipe) -> Section:
    if recipe.asked.device == "cuda":
        return {
            "device": ("cuda", ""),
            "precision": ("bf16", ""),
            "memory_format": ("channels_last", ""),
            "threads": (4, ""),
            "microbatch": (recipe.microbatch, "units; times draws, 2048 images at once"),
        }
    return {
        "device": ("cpu", ""),
        "threads": (recipe.asked.cores, ""),
        "microbatch": (recipe.microbatch, "units"),
    }


def _why_net(recipe: Recipe) -> str:
    if recipe.signal(recipe.net) < MIN_SIGNAL:
        return "the smallest network, since the noise grows with it"
    return "the largest that the time trains and the noise leaves a signal"


def _why_noise(recipe: Recipe) -> str:
    share = "45" if recipe.asked.units_per_class < 1000 else "20"
    return f"the least that costs at most {share} % of ε alone; {recipe.pixel_noise():.2g} per pixel"


def _hours(hours: float) -> str:
    return f"{hours:g} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def _section(name: str, options: Section) -> str:
    lines = [f"  {key}: {_value(value)}" for key, (value, _) in options.items()]
    width = min(28, max(map(len, lines))) + 1
    whys = [why for _, why in options.values()]
    return f"\n{name}:\n" + "".join(
        (f"{line:<{width}} # {why}" if why else line) + "\n" for line, why in zip(lines, whys, strict=True)
    )


def _value(value: Any) -> str:
    if isinstance(value, float) and abs(value) < 1e-3:
        mantissa, power = f"{value:e}".split("e")
        return f"{float(mantissa):g}{'' if '.' in f'{float(mantissa):g}' else '.0'}e{int(power)}"
    return json.dumps(value, ensure_ascii=False)
