"""Checks across a run's options: combinations that do not go together."""

import os
import unicodedata
from collections.abc import Iterator
from math import log

from curriculumdp.config.data_section import DataConfig
from curriculumdp.config.sections import (
    CentralConfig,
    FrequencyConfig,
    LoggingConfig,
    ModelConfig,
    Options,
    PrivacyConfig,
    PrivateConfig,
    WarmupConfig,
)
from curriculumdp.config.yaml_file import shown
from curriculumdp.phases import PHASE_NAMES, SOLVED
from curriculumdp.privacy.event import MIN_DELTA, as_typed

# Normals made from 32-bit words stay below MAX_LEVEL; e^±80, the square of e^±40, is well inside fp32's range.
MAX_LEVEL, MAX_LOG_LEVEL = 7.0, 40.0
MAX_NAMES = 50_000  # letters of all class names together
# An embedding's angle is at most 9.5·2³²/2π, below 2³³, steps per pixel and unit of bandwidth: 2¹⁹ of them stay below
# 2⁵³, where sums of integers are exact in float64.
MAX_PIXELS_PER_BANDWIDTH = 2**19
# The options that only some sources read.
NAMED = ("npz", "image_folder", "dicom", "parquet", "tar")  # units may have names, pixels any depth
READ_BY = {
    "csv": ("image_folder", "dicom"),
    "roster": NAMED,
    "window": NAMED,
    "split": ("medmnist", "parquet"),
}


def disagreements(options: Options) -> Iterator[str]:
    """Yield one line per combination of options that do not go together."""
    yield from _curriculum_problems(options)
    yield from _data_problems(options.data, options.privacy)
    if 2 * options.data.shift >= options.data.size:
        yield (
            f"data.shift is {options.data.shift}: must be less than half of data.size = {options.data.size}; lower it"
        )
    yield from _model_problems(options.model, options.data.size)
    yield from _level_problems(options.private)
    if options.central is not None:
        yield from _central_problems(options.central, options.data)
    if options.frequency is not None:
        yield from _frequency_problems(options.frequency, options.data)
    if options.warmup is not None:
        yield from _warmup_problems(options.warmup, options)
    yield from _tracker_problems(options.logging)
    if options.compute.precision == "bf16" and options.compute.device != "cuda":
        yield (
            f"compute.precision is 'bf16' with compute.device '{options.compute.device}': bf16 needs "
            "compute.device=cuda; set that, or compute.precision=fp32"
        )


def _tracker_problems(logging: LoggingConfig) -> Iterator[str]:
    if len(set(logging.trackers)) < len(logging.trackers):
        yield f"logging.trackers is {list(logging.trackers)}: list each tracker once"
    if logging.track_private_metrics and not logging.trackers:
        yield (
            "logging.track_private_metrics is true without logging.trackers, and the certificate would say that losses "
            "were shown: remove it, or list the trackers"
        )


def _curriculum_problems(options: Options) -> Iterator[str]:
    phases = options.curriculum
    if not phases or list(phases) != [phase for phase in PHASE_NAMES if phase in phases]:
        yield f"curriculum is {list(phases)}: list each phase at most once, in the order {list(PHASE_NAMES)}"
    if ("central" in phases or "frequency" in phases) != ("warmup" in phases):
        yield (
            f"curriculum is {list(phases)}: central and warmup go together (warmup trains on the central images), as "
            "do frequency and warmup; allowed: [central, warmup, private], [central, frequency, warmup, private], "
            "[frequency, warmup, private], each also without private, or [private]"
        )
    for phase in (name for name in PHASE_NAMES if name != SOLVED):
        given = getattr(options, phase) is not None
        if phase in phases and not given:
            yield f"{phase} is missing but curriculum lists it: add the section, or set curriculum=[private]"
        if given and phase not in phases:
            yield f"{phase} is given but curriculum is {list(phases)}: add it there, or set {phase}=null"


def _data_problems(data: DataConfig, privacy: PrivacyConfig) -> Iterator[str]:
    if data.source == "digits" and data.path is not None:
        yield f"data.path is {shown(data.path)}: digits ship with scikit-learn; remove data.path"
    if data.source != "digits" and not data.path:
        yield f"data.path is missing: source {data.source} reads a folder or a file; set data.path"
    for key, sources in READ_BY.items():
        if getattr(data, key) is not None and data.source not in sources:
            yield f"data.{key} is given but source {data.source} does not read it: remove data.{key}"
    if data.window is not None and data.window[0] >= data.window[1]:
        yield f"data.window is {list(data.window)}: low must be below high"
    yield from _conversion_problems(data)
    if data.ledger is not None and data.name is None:
        yield "data.ledger is given without data.name: set data.name to the data set it is for, or remove it"
    if data.ledger is not None and not os.path.isabs(data.ledger):
        yield (
            f"data.ledger is {shown(data.ledger)}: from another working directory or home it would be another "
            "ledger, and data.budget would be spent again; give an absolute path"
        )
    if data.budget is not None and data.name is None:
        yield (
            "data.budget is given without data.name: set data.name to the data set whose runs it limits, or remove it"
        )
    if data.budget is not None and data.budget < privacy.epsilon:
        yield (
            f"privacy.epsilon is {as_typed(privacy.epsilon)} and data.budget is {as_typed(data.budget)}: one run "
            "cannot cost more than all runs on the data set together; lower privacy.epsilon"
        )
    counts = data.class_counts
    if counts is not None and (len(counts) != data.classes or not any(counts)):
        yield (
            f"data.class_counts has {len(counts)} counts that sum to {sum(counts)}: give data.classes = "
            f"{data.classes} counts, not all 0"
        )
    yield from _name_problems(data)
    if privacy.delta < MIN_DELTA:
        yield (
            f"privacy.delta is {privacy.delta:g}: must be at least {MIN_DELTA:g}, below which truncated tails "
            f"distort ε; set privacy.delta={MIN_DELTA:g} or more"
        )
    if privacy.delta * data.units >= 1:
        yield (
            f"privacy.delta is {as_typed(privacy.delta)} with {data.units} units: a δ of 1/units or more permits "
            f"publishing a unit outright; set it below 1/{data.units}"
        )


def _name_problems(data: DataConfig) -> Iterator[str]:
    names = data.class_names
    if names is None:
        return
    if len(names) != data.classes:
        yield f"data.class_names has {len(names)} names but data.classes = {data.classes}: name each class once"
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        yield f"data.class_names has {shown(twice)} twice: give each class its own name"
    for name in names:
        if name != unicodedata.normalize("NFC", name.strip()):
            yield f"data.class_names has {shown(name)}: write it in Unicode's form NFC, without spaces around it"
    if sum(map(len, names)) > MAX_NAMES:
        yield f"data.class_names has more than {MAX_NAMES} letters, which no certificate can hold: shorten them"


def _conversion_problems(data: DataConfig) -> Iterator[str]:
    if data.fit == "pad" and data.background is None:
        yield "data.fit is 'pad' without data.background: set what the padding shows, such as data.background=0"
    if data.channels == 1 and isinstance(data.background, tuple):
        yield f"data.background is {list(data.background)} with data.channels = 1: give one value, 0..255"
    if data.source == "dicom" and data.window is None:
        yield (
            "data.window is missing: dicom holds values, not greys; set the ones for black and white, such as "
            "data.window=[-1000, 400]"
        )
    if data.channels == 3 and data.to_grey:
        yield "data.to_grey is true with data.channels = 3: set data.channels=1, or remove data.to_grey"


def _model_problems(model: ModelConfig, size: int) -> Iterator[str]:
    levels = len(model.channels)
    if size % 2 ** (levels - 1):
        yield (
            f"model.channels has {levels} levels, which halve the image {levels - 1} times: data.size = "
            f"{size} must be a multiple of {2 ** (levels - 1)}; drop a level or change data.size"
        )
    sizes = [size >> level for level in range(levels)]
    for resolution in model.attention:
        if resolution not in sizes:
            yield f"model.attention has {resolution}: the levels work at {sizes} pixels; choose from these"
    groups = model.norm_groups
    what = "model.groups" if model.groups else "model.groups (default: narrowest level / 4)"
    for width in model.channels:
        if width % groups or width == groups:
            yield (
                f"{what} is {groups} with a level of {width} channels: the groups must divide every level "
                "into at least 2 channels each, or GroupNorm erases the conditioning; change model.channels or "
                "model.groups"
            )
            return


def _level_problems(private: PrivateConfig) -> Iterator[str]:
    reach = abs(private.p_mean) + MAX_LEVEL * private.p_std + abs(log(private.sigma_data))
    if reach > MAX_LOG_LEVEL:
        yield (
            f"private.p_mean is {private.p_mean:g}, private.p_std is {private.p_std:g} and private.sigma_data is "
            f"{private.sigma_data:g}: the loss of some noise levels would be infinite; |p_mean| + "
            f"{MAX_LEVEL:g}·p_std + |ln sigma_data| must be at most {MAX_LOG_LEVEL:g}"
        )


def _central_problems(central: CentralConfig, data: DataConfig) -> Iterator[str]:
    if central.size > data.size:
        yield f"central.size is {central.size}: must be at most data.size = {data.size}"
    if central.median % 2 == 0 or central.median > data.size:
        yield f"central.median is {central.median}: must be odd and at most data.size; 1 turns it off"
    if central.count_weight and (central.statistic == "mode" or data.class_counts is not None):
        yield (
            f"central.count_weight is {central.count_weight:g}: only statistic=mean without public "
            "data.class_counts queries counts; set central.count_weight=0"
        )


def _frequency_problems(frequency: FrequencyConfig, data: DataConfig) -> Iterator[str]:
    pixels = data.channels * data.size**2
    if frequency.bandwidth is not None and frequency.bandwidth * MAX_PIXELS_PER_BANDWIDTH < pixels:
        yield (
            f"frequency.bandwidth is {frequency.bandwidth:g} with {pixels} pixels: the embedding's angles would be "
            f"inexact; use at least {pixels / MAX_PIXELS_PER_BANDWIDTH:g}"
        )
    if frequency.images < data.classes:
        yield f"frequency.images is {frequency.images}: must be at least data.classes = {data.classes}"


def _warmup_problems(warmup: WarmupConfig, options: Options) -> Iterator[str]:
    steps = warmup.frequency_steps
    if steps is not None and options.frequency is None:
        yield f"warmup.frequency_steps is {steps} without a frequency phase: remove it, or add the section frequency"
    elif options.frequency is not None and options.central is not None:
        if steps is None:
            yield "warmup.frequency_steps is missing: state how many of warmup.steps use the frequency images"
        elif steps >= warmup.steps:
            yield (
                f"warmup.frequency_steps is {steps} of warmup.steps = {warmup.steps}: the first steps use the central "
                "images; lower it, or leave the central phase out"
            )
    elif steps is not None and steps != warmup.steps:
        yield (
            f"warmup.frequency_steps is {steps} of warmup.steps = {warmup.steps}, but there are no central images for "
            "the others: remove it"
        )
