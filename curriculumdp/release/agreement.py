"""A certificate against the training config beside it: facts, settings, counts, and whether a run can have both."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from curriculumdp.config.yaml_file import parse_yaml
from curriculumdp.phases import DEFAULT_CURRICULUM, PHASES, SOLVED, title_of
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.event import MAX_COUNT, MIN_NOISE_MULTIPLIER
from curriculumdp.release.certificate import MAX_BYTES, Guarantee, PldAccounting, PublicEmbedding
from curriculumdp.release.files import CENTRAL, CERTIFICATE, CONFIG, FREQUENCY, NETWORK, read_limited

# The option that sets how often a phase is charged, None for once; a run that completed its plan charged at least that
# often.
STEPS = {name: facts.count for name, facts in PHASES.items() if facts.charged}
# The picture of the images that a phase makes.
SHOWN = {"central": CENTRAL, "frequency": FREQUENCY}
# The largest fraction of a budget that the solver leaves unspent.
LEFT_BY_SOLVING = 1e-3


def config_problems(folder: Path, guarantee: Guarantee) -> list[str]:
    """Return a line per fact of the certificate that the training config or another file contradicts."""
    try:
        config = parse_yaml(read_limited(folder / CONFIG, MAX_BYTES), CONFIG)
        pairs = [*_facts(config, guarantee), *_settings(config, guarantee), *_counts(config, guarantee)]
        return [
            *(
                f"{key} is {_shown(was)} in {CONFIG} but {now!r} in {CERTIFICATE}"
                for key, was, now in pairs
                if was != now
            ),
            *_course_problems(
                _planned(config), guarantee, [p for p in SHOWN if (folder / SHOWN[p]).exists()]
            ),
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return [f"{CONFIG} is not a training config"]


def network_problems(folder: Path, guarantee: Guarantee) -> list[str]:
    """Return a line per fact of the certificate that the network's own config, which diffusers reads, contradicts."""
    public = guarantee.public
    names = None if public.id2label is None else {str(n): name for n, name in enumerate(public.id2label)}
    try:
        config = json.loads(read_limited(folder / NETWORK, MAX_BYTES))
        pairs: list[tuple[str, Any, tuple[Any, ...]]] = [
            ("_id2label", config.get("_id2label"), (names,)),
            ("in_channels", config["in_channels"], public.image_shape[:1]),
            ("sample_size", config["sample_size"], public.image_shape[1:2]),
            # With or without the null class.
            ("num_class_embeds", config["num_class_embeds"], (public.classes, public.classes + 1)),
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"{NETWORK} is not a network's config"]
    return [
        f"{key} is {_shown(was)} in {NETWORK}, which {CERTIFICATE} contradicts"
        for key, was, allowed in pairs
        if was not in allowed
    ]


Pairs = Iterator[tuple[str, Any, Any]]


def _facts(config: Any, guarantee: Guarantee) -> Pairs:
    """Yield (key, the config's value, the certificate's value) for facts that both state directly."""
    data, privacy, public = config["data"], config["privacy"], guarantee.public
    yield "data.units", data["units"], public.units
    yield "data.classes", data["classes"], public.classes
    names = data.get("class_names")
    yield "data.class_names", None if names is None else tuple(names), public.id2label
    yield "image shape", (data["channels"], data["size"], data["size"]), public.image_shape
    yield "privacy.delta", privacy["delta"], guarantee.delta
    yield "privacy.epsilon", privacy["epsilon"], guarantee.epsilon
    yield "data.unit", data.get("unit", "one image"), guarantee.unit
    yield "init_from", config.get("init_from"), public.initial_weights
    yield "frequency embedding", _embedding(config), public.embedding
    for key in ("show_private_metrics", "track_private_metrics"):
        if (config.get("logging") or {}).get(key):
            yield f"logging.{key}", True, guarantee.private_metrics_shown


def _settings(config: Any, guarantee: Guarantee) -> Pairs:
    """Yield the same for each event's parameters; DP-SGD's noise is solved, so only its cost can be checked."""
    for row in guarantee.events:
        phase = config.get(row.name) or {}
        sampled = STEPS.get(row.name) is not None
        mechanism, rate = ("subsampled_gaussian", phase.get("sample_rate")) if sampled else ("gaussian", 1.0)
        yield f"mechanism of {row.name}", mechanism, row.mechanism
        yield f"{row.name}.sample_rate", rate, row.sample_rate
        clip_norm = phase.get("clip_norm") if sampled else 1.0
        if row.name != SOLVED:
            yield f"{row.name}.noise_multiplier", phase.get("noise_multiplier"), row.noise_multiplier
        if row.name == "central":
            clip_norm = clip_norm or _widest(phase, config["data"])
        yield f"{row.name}.clip_norm", clip_norm, row.clip_norm


def _widest(central: Any, data: Any) -> float:
    """Return the default clip norm of a query: the largest norm that one image's pixels can have."""
    scale = 1.0 if central.get("statistic") == "mode" else 0.5
    return math.sqrt(data["channels"] * central["size"] ** 2) * scale


def _embedding(config: Any) -> PublicEmbedding | None:
    """Return the embedding that a config describes; its default bandwidth grows with the root of the pixels' number."""
    if (frequency := config.get("frequency")) is None:
        return None
    pixels = config["data"]["channels"] * config["data"]["size"] ** 2
    bandwidth = float(frequency.get("bandwidth") or math.sqrt(105 * pixels / 784))
    return PublicEmbedding(features=frequency["features"], bandwidth=bandwidth, seed=config["seed"])


def _planned(config: Any) -> dict[str, int]:
    """Return how many events each charged phase of the curriculum plans; a run may have no private phase.

    Raises ValueError for a number that no plan can have.
    """
    phases = config.get("curriculum", DEFAULT_CURRICULUM)
    planned = {name: config[name][key] if key else 1 for name, key in STEPS.items() if name in phases}
    for name, count in planned.items():
        if type(count) is not int or not 0 < count <= MAX_COUNT:
            raise ValueError(f"{name} plans {count!r} events")
    return planned


def _counts(config: Any, guarantee: Guarantee) -> Pairs:
    """Yield the same for the number of events of each phase, if the run completed its plan."""
    done = {row.name: row.count for row in guarantee.events}
    for name, planned in _planned(config).items() if guarantee.stopped == "planned" else ():
        yield f"{name}.{STEPS[name] or 'releases'}", planned, min(planned, done.get(name, 0))


def _course_problems(planned: dict[str, int], guarantee: Guarantee, shown: list[str]) -> Iterator[str]:
    """Yield a line per reason why no run of the planned phases can have charged the certificate's events.

    shown: the phases whose images the release shows.
    """
    names = [row.name for row in guarantee.events]
    done = {row.name: row.count for row in guarantee.events}
    reached = {name for name, count in planned.items() if done.get(name, 0) >= count}
    if names != [name for name in planned if name in done]:
        yield f"events are {names} in {CERTIFICATE}, but the curriculum has {list(planned)}, in this order, each once"
    if not any(done.values()):
        yield f"{CERTIFICATE} lists no event: weights that cost nothing were not trained on the data"
    for name in shown:
        if not done.get(name):
            yield f"{SHOWN[name]} shows {name} images, but {CERTIFICATE} lists no {name} query"
    begun = [place for place, name in enumerate(planned) if done.get(name)]
    for name in list(planned)[: max(begun, default=0)]:
        if name not in reached:
            yield (
                f"{CERTIFICATE} lists events of {title_of(list(planned)[max(begun)])}, but not all the "
                f"{STEPS[name] or 'releases'} of {title_of(name)} that precede them"
            )
    if guarantee.stopped == "budget" and not reached:
        yield f"stopped is budget in {CERTIFICATE}, but no phase has completed its planned events"


def noise_problems(folder: Path, guarantee: Guarantee, recomputed: PldAccounting) -> list[str]:
    """Return a line if DP-SGD's noise multiplier is larger than the one its plan was solved for.

    It is solved once, from the config alone, so that the whole plan costs all but a thousandth of the budget. For a run
    that made another number of steps, the plan's counts are used.
    """
    private = next((row for row in guarantee.events if row.name == SOLVED), None)
    if (
        private is None or private.noise_multiplier <= MIN_NOISE_MULTIPLIER
    ):  # the smallest one ever solved for
        return []
    planned = _planned(parse_yaml(read_limited(folder / CONFIG, MAX_BYTES), CONFIG))
    if all(row.count == planned[row.name] for row in guarantee.events):
        cost = recomputed.epsilon_of_events
    else:
        rows = [replace(row.event, count=planned[row.name]) for row in guarantee.events]
        cost = epsilon(rows, guarantee.delta)
    if cost >= guarantee.epsilon * (1 - LEFT_BY_SOLVING):
        return []
    return [
        f"private.noise_multiplier is {private.noise_multiplier:.9g} in {CERTIFICATE}: with it the planned run costs "
        f"{cost:.6g}, but noise is solved to use all of {guarantee.epsilon:.6g}"
    ]


def _shown(value: object) -> str:
    # A few lines of YAML can expand to a nested value whose text would fill the memory.
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return repr(value)[:80] if isinstance(value, int | float | str) else f"a {type(value).__name__}"
