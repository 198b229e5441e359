"""A release as evaluation sees it: its certificate, its config and images sampled from it. PUBLIC."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from curriculumdp.data.pixels import FITS
from curriculumdp.data.sources import load_images
from curriculumdp.diffusion.networks import UNet2DModel
from curriculumdp.diffusion.pipeline import load_pipeline
from curriculumdp.diffusion.sample import balanced_labels, sample_images
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.printable import printable
from curriculumdp.release.certificate import Certificate
from curriculumdp.release.files import CERTIFICATE, CONFIG, file_sha256
from curriculumdp.release.verify import read_certificate

# The name of a kind of set on the command line, and the reader of curriculumdp.data for it.
KINDS = {"digits": "digits", "idx": "idx", "npz": "npz", "medmnist": "medmnist", "folder": "image_folder"}
HOLD_BOTH_SPLITS = ("digits", "idx", "medmnist")
AT_ONCE = 512  # images sampled between two lines of progress


@dataclass(frozen=True)
class Released:
    """A release's certificate and config; `config` is its training config, without paths."""

    folder: Path
    config: Mapping[str, Any]
    certificate: Certificate

    @property
    def name(self) -> str:
        return printable(self.config["name"])

    @property
    def classes(self) -> int:
        return self.certificate.guarantee.public.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names in label order: their numbers, where they have no others."""
        return self.certificate.guarantee.public.id2label or tuple(map(str, range(self.classes)))

    @property
    def sampler(self) -> tuple[str, int]:
        """The sampler's name and number of steps."""
        return str(self.config["sampling"]["sampler"]), int(self.config["sampling"]["steps"])

    def identity(self) -> dict[str, str]:
        """Return what identifies this release: its name and its certificate's digest."""
        return {"name": self.name, "certificate_sha256": file_sha256(self.folder / CERTIFICATE)}


def read_released(folder: Path) -> Released:
    """Read the release in `folder` without verifying it. Raises CertificateError or EvaluationError, one line."""
    certificate = read_certificate(folder)
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        for section in ("data", "privacy", "model", "private", "sampling"):
            dict(config[section])
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        raise EvaluationError(
            f"{folder / CONFIG} is not a training config: name a complete release"
        ) from None
    return Released(folder, config, certificate)


def draw_images(
    released: Released,
    count: int,
    seed: int,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> LabelledSet:
    """Sample `count` images with the release's own sampler, balanced over classes; `seed` selects which."""
    net, sigma_data = load_pipeline(released.folder)
    sampler, steps = released.sampler
    return draw_from(
        net.to(device), sigma_data, released.classes,
        sampler=sampler, steps=steps, count=count, seed=seed, say=say,
    )  # fmt: skip


def draw_from(
    net: UNet2DModel,
    sigma_data: float,
    classes: int,
    *,
    sampler: str,
    steps: int,
    count: int,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> LabelledSet:
    """Sample `count` images from a network, balanced over classes. PUBLIC if its weights are."""
    labels = balanced_labels(list(range(classes)), count)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for some in labels.split(AT_ONCE):
        parts.append(
            sample_images(net, some, steps=steps, sampler=sampler, sigma_data=sigma_data, generator=generator)
        )
        if count > AT_ONCE:
            say(f"sampled {sum(map(len, parts))} of {count}")
    images = np.concatenate(parts)
    return LabelledSet(images.transpose(0, 3, 1, 2), labels.numpy(), f"{count} sampled with seed {seed}")


def evaluation_device(asked: str) -> torch.device:
    """Return the device for auto, cpu or cuda. Raises EvaluationError if it is absent."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise EvaluationError("--device cuda: torch finds no GPU: use cpu or auto")
    return torch.device(asked)


def load_set(
    text: str, released: Released, split: Literal["train", "test"], csv: Path | None = None
) -> LabelledSet:
    """Load the set that `text` names, such as digits or folder:PATH, fitted to the release's images.

    digits, idx and medmnist have both splits; for the others, the named file or folder is the set. csv: the table of a
    folder's labels; then `text` may be the folder's bare path. Class folders, and labels that are names, must be the
    release's. Raises DataError or EvaluationError, one line.
    """
    kind, _, path = text.partition(":")
    if csv is not None and kind not in KINDS:
        kind, path = "folder", text
    if kind not in KINDS or bool(path) == (kind == "digits"):
        raise EvaluationError(
            f"{text!r} is not a set of images: use digits, idx:PATH, npz:PATH, medmnist:PATH or folder:PATH"
        )
    if csv is not None and kind != "folder":
        raise EvaluationError(f"{text!r} is not a folder, so it has no table {csv}: leave out the table")
    public = released.certificate.guarantee.public
    window = released.config["data"].get("window")
    declared = kind in HOLD_BOTH_SPLITS and split == "train"
    found = load_images(
        source=KINDS[kind],
        path=path or None,
        csv=None if csv is None else str(csv),
        classes=public.classes,
        channels=public.image_shape[0],
        size=public.image_shape[1],
        window=None if window is None else (float(window[0]), float(window[1])),
        class_names=released.class_names,
        **_conversion_of(released.config["data"]),
        units=public.units if declared else None,
        split="train" if declared else "test",
    )
    part = f", {split} split" if kind in HOLD_BOTH_SPLITS else ""
    return LabelledSet(found.images, found.labels, f"{kind}{part}")


def _conversion_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which the training images were converted, so that real ones are converted alike."""
    background = data.get("background")
    return {
        "fit": data.get("fit") if data.get("fit") in FITS else "crop",
        "background": tuple(background) if isinstance(background, list) else background,
        "to_grey": data.get("to_grey") is True,
    }
