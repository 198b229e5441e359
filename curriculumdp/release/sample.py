"""Synthetic images from a release, on disk: post-processing, which costs no privacy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from curriculumdp.data.names import like_a_number, listed
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

    labels: classes separated by commas, by name or number, sampled in turn; by default all. The initial noise depends
    on `seed` alone. batch: images at once. png: also write one file per image and a table of them. grid: also write one
    picture of the first 100 images to this file. Raises RequestError and whatever reading the release or sampling
    raises, each one line.
    """
    if count < 1 or batch < 1:
        raise RequestError(f"num is {count} and batch is {batch}: both must be at least 1")
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed is {seed}: must be in [0, 2**63)")
    public = read_certificate(release).guarantee.public
    wanted = balanced_labels(_classes(labels, public.classes, public.id2label), count)
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
    return save_images(out, images, wanted.numpy(), png, public.id2label)


def _write_grid(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=min(10, len(images))).save(path, format="PNG")


def _classes(labels: str | None, classes: int, names: Sequence[str] | None) -> list[int]:
    """Return the labels of the classes asked for, by name or, where no name looks like one, by number."""
    if labels is None:
        return list(range(classes))
    places = {name: label for label, name in enumerate(names or ())}
    if not any(map(like_a_number, places)):
        places |= {str(label): label for label in range(classes)}
    asked = []
    for text in (part.strip() for part in labels.split(",")):
        if text not in places:
            known = f"classes named {listed(names)}" if names else f"classes 0 to {classes - 1}"
            raise RequestError(
                f"label {text!r} is not a class: the release has {known}; separate several by commas"
            )
        asked.append(places[text])
    return asked
