"""Synthetic images from a release, on disk: post-processing, which costs no privacy."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curriculumdp.data.names import like_a_number, listed
from curriculumdp.diffusion.guidance import Guided
from curriculumdp.diffusion.pictures import image_grid, npz_bytes
from curriculumdp.diffusion.pipeline import load_pipeline
from curriculumdp.diffusion.sample import balanced_labels, sample_images
from curriculumdp.disk import OutputError, make_folder, require_writable, write_whole
from curriculumdp.errors import UserError
from curriculumdp.printable import printable
from curriculumdp.release.dataset import dataset_card, require_replaceable, write_dataset
from curriculumdp.release.manner import Manner, chosen_manner, read_config
from curriculumdp.release.terms import require_license
from curriculumdp.release.verify import read_certificate

IN_GRID = 100
ARRAYS, PICTURES = "images.npz", "png"


class RequestError(UserError):
    """An invalid request for samples; the message is one line."""


def sample_release(
    release: Path,
    count: int,
    out: Path,
    *,
    labels: str | None = None,
    purpose: str | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 256,
    png: bool = False,
    grid: Path | None = None,
    license_: str | None = None,
) -> tuple[Path, Manner]:
    """Sample `count` images from a release, on the GPU if there is one; return (`out`/images.npz, how they were made).

    labels: classes separated by commas, by name or number, sampled in turn; by default all. The initial noise depends
    on `seed` alone. The sampler and steps are the release's own, unless `purpose` (see PURPOSES) or they themselves
    are given. batch: images at once. png: also write `out`/png, which `write_dataset` describes, with `license_` on
    its card. grid: also write one picture of the first 100 images to this file. Outputs are checked before the work,
    and each replaces an earlier one as a whole. Raises RequestError, OutputError and whatever reading the release or
    sampling raises, each one line.
    """
    if count < 1 or batch < 1:
        raise RequestError(f"num is {count} and batch is {batch}: both must be at least 1")
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed is {seed}: must be in [0, 2**63)")
    require_license(license_)
    certificate = read_certificate(release)
    public = certificate.guarantee.public
    wanted = balanced_labels(_classes(labels, public.classes, public.id2label), count)
    manner = chosen_manner(release, purpose, sampler, steps, guidance)
    _require_apart(release, out, grid)
    _require_outputs(out, grid, png)
    images = _sampled(release, wanted, manner, public.classes, seed, batch)
    make_folder(out)
    write_whole(out / ARRAYS, npz_bytes(images, wanted.numpy(), public.id2label), mode=0o666)
    if png:
        config = read_config(release)
        card = dataset_card(_name(config), certificate, count, f"{manner}, seed {seed}", license_)
        write_dataset(out / PICTURES, release, images, wanted.numpy(), card, public.id2label)
    if grid is not None:
        make_folder(grid.parent)
        write_whole(grid, _grid_bytes(images[:IN_GRID]), mode=0o666)
    return out / ARRAYS, manner


def _require_apart(release: Path, out: Path, grid: Path | None) -> None:
    """Raise RequestError if an output would fall into the release, which stays as certified, or on another output."""
    for name, path in (("--out", out), ("--grid", grid)):
        if path is not None and path.resolve().is_relative_to(release.resolve()):
            raise RequestError(
                f"{name} {path} is in the release, which would no longer verify: choose another place"
            )
    if grid is not None:
        there, folder = grid.resolve(), out.resolve()
        if (
            there == folder / ARRAYS
            or there.is_relative_to(folder / PICTURES)
            or folder.is_relative_to(there)
        ):
            raise RequestError(f"--grid {grid} is in the way of what --out {out} writes: choose another file")


def _require_outputs(out: Path, grid: Path | None, png: bool) -> None:
    """Raise OutputError unless what is asked for can be written, and no other call's pictures would stay beside it."""
    require_writable(out, folder=True)
    require_writable(out / ARRAYS)
    if png:
        require_replaceable(out / PICTURES)
    elif (out / PICTURES).exists():
        raise OutputError(
            f"{out / PICTURES} holds pictures of an earlier call: add --png to replace them, or choose another --out"
        )
    if grid is not None:
        require_writable(grid)


def _sampled(
    release: Path, wanted: Tensor, manner: Manner, classes: int, seed: int, batch: int
) -> np.ndarray:
    net, sigma_data = load_pipeline(release)
    net = net.to("cuda" if torch.cuda.is_available() else "cpu")
    return sample_images(
        net if manner.guidance == 1 else Guided(net, manner.guidance, classes),
        wanted,
        steps=manner.steps,
        sampler=manner.sampler,
        sigma_data=sigma_data,
        generator=torch.Generator().manual_seed(seed),
        batch=batch,
    )


def _name(config: Mapping[str, Any]) -> str:
    return printable(config.get("name", "a release"))[:100]


def _grid_bytes(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image_grid(images, columns=min(10, len(images))).save(buffer, format="PNG")
    return buffer.getvalue()


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
