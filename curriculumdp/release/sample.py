"""Synthetic images from a release, on disk: post-processing, which costs no privacy."""

from pathlib import Path

import numpy as np
import torch

from curriculumdp.diffusion.pictures import image_grid, save_images
from curriculumdp.diffusion.pipeline import load_pipeline
from curriculumdp.diffusion.sample import balanced_labels, sample_images
from curriculumdp.errors import UserError
from curriculumdp.release.verify import read_certificate

IN_GRID = 100


class RequestError(UserError):
    """An invalid request for samples; the message is one line."""


def sample_release(
    release: Path,
    count: int,
    out: Path,
    *,
    labels: str | None = None,
    sampler: str = "dpm",
    steps: int = 18,
    seed: int = 0,
    batch: int = 256,
    png: bool = False,
    grid: Path | None = None,
) -> Path:
    """Sample `count` images from a release, on the GPU if there is one, and return the path of `out`/images.npz.

    labels: classes separated by commas, sampled in turn; by default all. The initial noise depends on `seed` alone.
    batch: images at once. png: also write one file per image. grid: also write one picture of the first 100 images
    to this file. Raises RequestError and whatever reading the release or sampling raises, each one line.
    """
    if count < 1 or batch < 1:
        raise RequestError(f"num is {count} and batch is {batch}: both must be at least 1")
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed is {seed}: must be in [0, 2**63)")
    wanted = balanced_labels(_classes(labels, read_certificate(release).guarantee.public.classes), count)
    net, sigma_data = load_pipeline(release)
    images = sample_images(
        net.to("cuda" if torch.cuda.is_available() else "cpu"),
        wanted,
        steps=steps,
        sampler=sampler,
        sigma_data=sigma_data,
        generator=torch.Generator().manual_seed(seed),
        batch=batch,
    )
    if grid is not None:
        _write_grid(grid, images[:IN_GRID])
    return save_images(out, images, wanted.numpy(), png)


def _write_grid(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=min(10, len(images))).save(path, format="PNG")


def _classes(labels: str | None, classes: int) -> list[int]:
    if labels is None:
        return list(range(classes))
    try:
        asked = [int(label) for label in labels.split(",")]
    except ValueError:
        raise RequestError(
            f"labels are {labels!r}: give class numbers separated by commas, such as 0,1,2"
        ) from None
    for label in asked:
        if not 0 <= label < classes:
            raise RequestError(f"label {label} is not a class: the release has classes 0 to {classes - 1}")
    return asked
