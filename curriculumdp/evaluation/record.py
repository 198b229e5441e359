"""An evaluation's record on disk and as a table; public and private metrics are in different folders.

OUT/evaluation/ has metrics against public real images; OUT/private/evaluation/ has those against the training set
and against real images that were not declared public.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curriculumdp.disk import write_whole
from curriculumdp.evaluation.labelled import EvaluationError

FORMAT = "curriculumdp evaluation 1"
RECORD, UTILITY, DISTANCES, NEIGHBOURS = "evaluation.json", "utility.png", "distances.png", "neighbours.png"
PUBLIC_WORDS = "Computed from the release and from public real images. May be shared."
PRIVATE_WORDS = "PRIVATE: computed from sensitive images without noise. Must not be shared."
MAX_CLASSES = 20  # of which a table shows the accuracy
MEASURES = {"fd": "FD", "fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall"}


def public_folder(out: Path) -> Path:
    """Return the folder of public metrics under `out`, usually a run's folder."""
    return out / "evaluation"


def private_folder(out: Path) -> Path:
    """Return the folder of private metrics under `out`, usually a run's folder."""
    return out / "private" / "evaluation"


def write_record(
    out: Path,
    *,
    release: Mapping[str, str],
    public: Mapping[str, Any],
    private: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> list[Path]:
    """Write the records that are not empty and return their paths, replacing an earlier evaluation in `out`.

    pictures: PNG bytes by file name; `utility.png` goes with the utility metrics, all others are private.
    """
    written = []
    for folder, metrics, words in (
        (public_folder(out), public, PUBLIC_WORDS),
        (private_folder(out), private, PRIVATE_WORDS),
    ):
        for name in (RECORD, UTILITY, DISTANCES, NEIGHBOURS):
            (folder / name).unlink(missing_ok=True)
        if not metrics:
            continue
        for path in (folder.parent, folder) if metrics is private else (folder,):
            path.mkdir(mode=0o700 if metrics is private else 0o755, parents=True, exist_ok=True)
        for name, content in pictures.items():
            if (name == UTILITY and "utility" in metrics) or (name != UTILITY and metrics is private):
                write_whole(folder / name, content, mode=0o666)
        record = {"format": FORMAT, "privacy": words, "release": dict(release), **metrics}
        write_whole(
            folder / RECORD, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode(), mode=0o666
        )
        written.append(folder / RECORD)
    return written


def read_record(folder: Path, release: Mapping[str, str]) -> dict[str, Any]:
    """Return the record in `folder`, or {} if there is none. Raises EvaluationError if it is another release's."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known:
        raise EvaluationError(f"{path} is not an evaluation record: run launch/evaluate.py again")
    if record["release"] != dict(release):
        raise EvaluationError(
            f"{path} belongs to another release than the run's: run launch/evaluate.py again"
        )
    return dict(record)


def measures(fidelity: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of the measures in a record's `fidelity`, by name: FD or FID depending on its network."""
    return {name: title for name, title in MEASURES.items() if name in fidelity}


def frechet(fidelity: Mapping[str, Any]) -> tuple[str, Any]:
    """Return (FID, its value) if a record's `fidelity` has it, else (FD, its value)."""
    name = "fid" if "fid" in fidelity else "fd"
    return MEASURES[name], fidelity[name]


def figure(value: Mapping[str, Any], scale: float = 1, digits: int = 4) -> str:
    """Return `mean ± spread`, times `scale`: two decimals from 1 up, `digits` significant digits below."""
    mean, spread = value["mean"] * scale, value["spread"]
    text = _number(mean, digits)
    return text if spread is None else f"{text} ± {_number(spread * scale, 2)}"


def _number(value: float, digits: int) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.{digits}g}"


def percent(value: Mapping[str, Any]) -> str:
    """Return an accuracy and its spread in percent, to one decimal."""
    spread = "" if value["spread"] is None else f" ± {value['spread'] * 100:.1f}"
    return f"{value['mean'] * 100:.1f}{spread}"


def table(public: Mapping[str, Any], private: Mapping[str, Any]) -> str:
    """Return all metrics as lines of text. PRIVATE unless `private` is empty."""
    both = {**private, **public}
    quick = "QUICK: few images and classifiers, for a first look; " if both["synthetic"].get("quick") else ""
    return "\n".join(
        [
            f"{quick}{both['synthetic']['images']} synthetic images, seeds {both['synthetic']['seeds']}; "
            f"{both['real']['images']} real ones ({both['real']['origin']})",
            *_overlap_lines(both),
            *_utility_lines(both),
            *_fidelity_lines(both),
            *_memorisation_lines(both),
            PRIVATE_WORDS if private else PUBLIC_WORDS,
        ]
    )


def _overlap_lines(record: Mapping[str, Any]) -> Iterator[str]:
    if "overlap" in record:
        found = record["overlap"]
        yield f"{found['in_training']} of {found['images']} test images are in the training set: figures are flattered"
    if record["real"].get("training_images_allowed"):
        yield "test images that the release was trained on were allowed (--allow-training-images)"


def _utility_lines(record: Mapping[str, Any]) -> Iterator[str]:
    reference = record.get("reference", {}).get("utility", {})
    if not record["utility"]:
        yield "\nutility: none, since there is a single class"
        return
    yield "\nutility: trained on synthetic images, tested on real ones, accuracy in %"
    for name, value in record["utility"].items():
        real = f"   on the real training set {percent(reference[name])}" if name in reference else ""
        yield f"  {name:10s} {percent(value)}{balanced_words(value)}{real}"
        for shown, share in list(value.get("per_class", {}).items())[:MAX_CLASSES]:
            yield f"    {shown:20s} {'no test image' if share is None else f'{share:.1%}'}"
    if "majority" in record["real"]:
        yield f"  always the commonest class: {record['real']['majority']:.1%}"


def balanced_words(value: Mapping[str, Any]) -> str:
    """Return a classifier's balanced accuracy in words; nothing in a record of an older version."""
    return f" (balanced over classes {percent(value['balanced'])})" if "balanced" in value else ""


def _fidelity_lines(record: Mapping[str, Any]) -> Iterator[str]:
    found = record["fidelity"]
    reference = record.get("reference", {}).get("fidelity", {})
    network = found["network"]
    named = f"{network['name']} trained on {network['trained_on']}, sha256 {network['sha256'][:12]}"
    yield f"\nfidelity: against {found['compared_with']} real images in {named}"
    for name, title in measures(found).items():
        real = f"   real training images {_number(reference[name], 4)}" if name in reference else ""
        yield f"  {title:10s} {figure(found[name])}{real}"


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
