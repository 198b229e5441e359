"""Synthetic images as a folder that can be published: Hugging Face's imagefolder layout, a card, the certificate."""

import csv
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curriculumdp.diffusion.pictures import to_picture
from curriculumdp.disk import OutputError, replace_folder, require_writable, sync, unfinished
from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import Certificate
from curriculumdp.release.files import CERTIFICATE, SIGNATURE
from curriculumdp.release.terms import license_words

CARD, TRAIN, METADATA = "README.md", "train", "metadata.csv"


def require_replaceable(folder: Path) -> None:
    """Raise OutputError unless `folder` can be written and is new, empty, or an earlier output of `write_dataset`."""
    require_writable(folder, folder=True)
    require_writable(unfinished(folder), folder=True)
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    ours = names <= {CARD, TRAIN, CERTIFICATE, SIGNATURE} and (folder / TRAIN / METADATA).is_file()
    if names and not ours:
        raise OutputError(f"{folder} holds something other than sampled images: choose another --out")


def write_dataset(
    folder: Path,
    release: Path,
    images: np.ndarray,
    labels: np.ndarray,
    card: str,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write images uint8 [N, H, W, C] as PNG, their labels, the card and the certificate; return `folder`.

    class_names: in label order; the table then holds names instead of numbers.

    An earlier output is replaced as a whole, so pictures of two releases never mix. Raises OSError, with the earlier
    output as it was.
    """
    staging, aside = unfinished(folder), folder.with_name(f".{folder.name}.replaced")
    for leftover in (staging, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        (staging / TRAIN).mkdir(parents=True)
        rows = io.StringIO()
        table = csv.writer(rows, lineterminator="\n")
        table.writerow(["file_name", "label"])
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{number:06d}.png"
            to_picture(image).save(staging / TRAIN / name)
            table.writerow([name, int(label) if class_names is None else class_names[label]])
        (staging / TRAIN / METADATA).write_text(rows.getvalue(), encoding="utf-8")
        (staging / CARD).write_text(card, encoding="utf-8")
        for name in (CERTIFICATE, SIGNATURE):
            if (release / name).is_file():
                shutil.copyfile(release / name, staging / name)
        for path in (*staging.rglob("*"), staging):
            sync(path)
        replace_folder(staging, folder, aside)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def dataset_card(
    name: str,
    certificate: Certificate,
    count: int,
    manner: str,
    license_: str | None,
) -> str:
    """Return the README.md of `write_dataset`'s folder: a Hugging Face dataset card. PUBLIC."""
    from huggingface_hub import DatasetCardData

    metadata = DatasetCardData(
        license=license_,
        task_categories=["image-classification"],
        tags=["differential-privacy", "synthetic-data", "image-generation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": f"{TRAIN}/*"}]}],
    ).to_yaml()
    promised = certificate.guarantee
    channels, height, width = promised.public.image_shape
    epsilon, delta = rounded_up(promised.epsilon), rounded_up(promised.delta)
    names = promised.public.id2label or list(map(str, range(promised.public.classes)))
    return f"""---
{metadata}
---

# Synthetic images from {name}

{count} synthetic images of {width}x{height} pixels, {"grey" if channels == 1 else "RGB"}, of {len(names)} classes:
{", ".join(names)}. Sampled from a diffusion model that was trained under differential privacy ({manner}).

{license_words(license_)}

## Use

`load_dataset("imagefolder", data_dir="path/to/this/folder")` of Hugging Face's `datasets` gives the columns `image` and
`label`. `{TRAIN}/{METADATA}` lists each file's label.

## Privacy

The model is **(ε = {epsilon}, δ = {delta})-differentially private** for one unit ({promised.unit}), under zero-out
adjacency. Sampling is post-processing and costs nothing more, however many images are sampled. `{CERTIFICATE}` is the
model's certificate, as it was released: it states what was charged and lists the SHA-256 of the model's files. It does
not list the images here, and nothing proves that they come from that model: for that you must trust the publisher.

## Not here

The real images, the model's weights (a release of their own) and everything private of the run. Labels are those that
the model was asked for: no one checked that each image shows its class.
"""
