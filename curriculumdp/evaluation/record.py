"""What an evaluation found, on disk and as a table; public and private figures lie in different folders.

PLACE/evaluation/ holds figures against real images that are public; PLACE/private/evaluation/ those against
the training set, and against real images that nobody declared public.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curriculumdp.disk import write_whole
from curriculumdp.evaluation.labelled import EvaluationError

FORMAT = "curriculumdp evaluation 1"
RECORD, UTILITY, DISTANCES, NEIGHBOURS = "evaluation.json", "utility.png", "distances.png", "neighbours.png"
PUBLIC_WORDS = "Computed from the release and from real images that are public. It may leave."
PRIVATE_WORDS = "PRIVATE: computed from sensitive images without noise. It may not leave."
MEASURES = {"fd": "FD", "fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall"}


def public_folder(place: Path) -> Path:
    """Where public figures of the run or release at `place` lie."""
    return place / "evaluation"


def private_folder(place: Path) -> Path:
    """Where private ones lie."""
    return place / "private" / "evaluation"


def write_record(
    place: Path,
    *,
    release: Mapping[str, str],
    public: Mapping[str, Any],
    private: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> list[Path]:
    """The paths of the records written, of what is not empty; an earlier evaluation at `place` is replaced.

    pictures: PNG bytes by file name; `utility.png` goes with the utility figures, all others are private.
    """
    written = []
    for folder, figures, words in (
        (public_folder(place), public, PUBLIC_WORDS),
        (private_folder(place), private, PRIVATE_WORDS),
    ):
        for name in (RECORD, UTILITY, DISTANCES, NEIGHBOURS):
            (folder / name).unlink(missing_ok=True)
        if not figures:
            continue
        for path in (folder.parent, folder) if figures is private else (folder,):
            path.mkdir(mode=0o700 if figures is private else 0o755, parents=True, exist_ok=True)
        for name, content in pictures.items():
            if (name == UTILITY and "utility" in figures) or (name != UTILITY and figures is private):
                write_whole(folder / name, content, mode=0o666)
        whole = {"format": FORMAT, "privacy": words, "release": dict(release), **figures}
        write_whole(
            folder / RECORD, (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode(), mode=0o666
        )
        written.append(folder / RECORD)
    return written


def read_record(folder: Path, release: Mapping[str, str]) -> dict[str, Any]:
    """The record in `folder`, {} if there is none. Raises EvaluationError if it is another release's."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        whole = json.loads(path.read_text())
        known = whole["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known:
        raise EvaluationError(f"{path} is no record of an evaluation: run launch/evaluate.py again")
    if whole["release"] != dict(release):
        raise EvaluationError(f"{path} is of another release than the run's: run launch/evaluate.py again")
    return dict(whole)


def measures(fidelity: Mapping[str, Any]) -> dict[str, str]:
    """The titles of the measures that a record's `fidelity` has, by name: FD or FID, as its network is."""
    return {name: title for name, title in MEASURES.items() if name in fidelity}


def frechet(fidelity: Mapping[str, Any]) -> tuple[str, Any]:
    """(FID, its value) of a record's `fidelity` that has it; else (FD, its value)."""
    name = "fid" if "fid" in fidelity else "fd"
    return MEASURES[name], fidelity[name]


def figure(value: Mapping[str, Any], scale: float = 1, digits: int = 4) -> str:
    """`mean ± spread`, times `scale`, with `digits` significant digits at most two behind the point."""
    mean, spread = value["mean"] * scale, value["spread"]
    text = _number(mean, digits)
    return text if spread is None else f"{text} ± {_number(spread * scale, 2)}"


def _number(value: float, digits: int) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.{digits}g}"


def percent(value: Mapping[str, Any]) -> str:
    """An accuracy and its spread in percent, one digit behind the point."""
    spread = "" if value["spread"] is None else f" ± {value['spread'] * 100:.1f}"
    return f"{value['mean'] * 100:.1f}{spread}"


def table(public: Mapping[str, Any], private: Mapping[str, Any]) -> str:
    """All figures as lines of text. PRIVATE where `private` is not empty."""
    both = {**private, **public}
    return "\n".join(
        [
            f"{both['synthetic']['images']} synthetic images, seeds {both['synthetic']['seeds']}; "
            f"{both['real']['images']} real ones ({both['real']['origin']})",
            *_utility_lines(both),
            *_fidelity_lines(both),
            *_memorisation_lines(both),
            PRIVATE_WORDS if private else PUBLIC_WORDS,
        ]
    )


def _utility_lines(record: Mapping[str, Any]) -> Iterator[str]:
    reference = record.get("reference", {}).get("utility", {})
    yield "\nutility: trained on synthetic images, tested on real ones, accuracy in %"
    for name, value in record["utility"].items():
        beside = f"   on the real training set {percent(reference[name])}" if name in reference else ""
        yield f"  {name:10s} {percent(value)}{beside}"


def _fidelity_lines(record: Mapping[str, Any]) -> Iterator[str]:
    found = record["fidelity"]
    reference = record.get("reference", {}).get("fidelity", {})
    network = found["network"]
    named = f"{network['name']} trained on {network['trained_on']}, sha256 {network['sha256'][:12]}"
    yield f"\nfidelity: against {found['compared_with']} real images in {named}"
    for name, title in measures(found).items():
        beside = f"   real training images {_number(reference[name], 4)}" if name in reference else ""
        yield f"  {title:10s} {figure(found[name])}{beside}"


def _memorisation_lines(record: Mapping[str, Any]) -> Iterator[str]:
    if "memorisation" not in record:
        return
    found = record["memorisation"]
    yield f"\nmemorisation: {found['measure']}"
    for name in ("synthetic", "held_out"):
        row = found[name]
        quantiles = ", ".join(f"{title} {value:.4f}" for title, value in row["quantiles"].items())
        yield f"  {name:10s} {quantiles}; copies {row['copies']:.2%}, identical {row['identical']}"
    yield f"  a synthetic image is nearer than a held-out one with probability {found['nearer']:.3f}"
