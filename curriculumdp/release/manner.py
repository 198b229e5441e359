"""How a release is sampled: its own sampler and steps, those of a purpose, or those that are asked for. PUBLIC."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curriculumdp.config.yaml_file import parse_yaml
from curriculumdp.errors import UserError
from curriculumdp.release.certificate import MAX_BYTES
from curriculumdp.release.files import CONFIG, read_limited


class MannerError(UserError):
    """A way of sampling that a release does not have; the message is one line."""


@dataclass(frozen=True)
class Manner:
    """How images are sampled. guidance: the strength w of classifier-free guidance, 1 for none."""

    sampler: str
    steps: int
    guidance: float = 1.0

    def __str__(self) -> str:
        guided = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        return f"sampler {self.sampler}, {self.steps} steps{guided}"


# From docs/recipes.md, "Sampling", measured on three releases of 8-pixel digits alone. utility: no fresh noise, at the
# knee of classifiers' accuracy. fidelity: fresh noise lowers FD and costs a point or two of accuracy; 9 steps had a
# lower FD still, but 5 ruin the images.
PURPOSES = {"utility": Manner("dpm", 18), "fidelity": Manner("churn", 14)}


def chosen_manner(
    release: Path, purpose: str | None, sampler: str | None, steps: int | None, guidance: float | None
) -> Manner:
    """Return the release's own manner, or `purpose`'s, with what else is given in its place. Raises MannerError."""
    if purpose is not None and purpose not in PURPOSES:
        raise MannerError(f"no purpose {purpose!r}: choose from {', '.join(PURPOSES)}")
    config = read_config(release)
    usual = PURPOSES[purpose] if purpose else _own(config)
    if guidance is not None:
        require_null_class(config, guidance)
    return Manner(
        usual.sampler if sampler is None else sampler,
        usual.steps if steps is None else steps,
        1.0 if guidance is None else guidance,
    )


def read_config(release: Path) -> Mapping[str, Any]:
    """Return a release's training config, as plain values that nobody has checked. Raises MannerError."""
    try:
        config = parse_yaml(read_limited(release / CONFIG, MAX_BYTES), CONFIG)
    except (OSError, ValueError) as error:
        raise MannerError(f"{release / CONFIG} cannot be read ({error}): name a complete release") from None
    return config if isinstance(config, dict) else {}


def _own(config: Mapping[str, Any]) -> Manner:
    own = config.get("sampling")
    sampler, steps = (own.get("sampler"), own.get("steps")) if isinstance(own, dict) else (None, None)
    if not isinstance(sampler, str) or type(steps) is not int:
        raise MannerError(
            f"{CONFIG} states no sampling.sampler and sampling.steps: give --for, or --sampler and --steps"
        )
    return Manner(sampler, steps)


def require_null_class(config: Mapping[str, Any], guidance: float) -> None:
    """Raise MannerError unless the last phase that trained the network also trained a null class to guide with."""
    if not 0 <= guidance <= 100:
        raise MannerError(f"guidance is {guidance}: give a strength from 0 to 100, where 1 is no guidance")
    phases = config.get("curriculum")
    phase = "warmup" if isinstance(phases, list) and "private" not in phases else "private"
    options = config.get(phase)
    share = options.get("label_dropout", 0) if isinstance(options, dict) else 0
    if not isinstance(share, int | float) or not share > 0:
        raise MannerError(
            f"guidance needs a null class, which the {phase} phase of this release did not train "
            f"({phase}.label_dropout is {share if isinstance(share, int | float) else 0:g}): leave --guidance out"
        )
