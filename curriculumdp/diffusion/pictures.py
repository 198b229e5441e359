"""Image arrays as files and grids for people to look at."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SMALLEST = 32  # minimum height of an image in a grid, pixels
GAP = 2


def image_grid(images: np.ndarray, columns: int) -> Image.Image:
    """Return one picture of uint8 images [N, H, W, C] (C 1 or 3, N ≥ 1), row by row; small images are enlarged."""
    enlarge = -(-SMALLEST // images.shape[1])
    large = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    count, height, width, channels = large.shape
    rows = -(-count // columns)
    height, width = height + GAP, width + GAP
    sheet = np.full((rows * height + GAP, columns * width + GAP, channels), 255, np.uint8)
    for index, image in enumerate(large):
        top, left = index // columns * height + GAP, index % columns * width + GAP
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return to_picture(sheet)


def to_picture(image: np.ndarray) -> Image.Image:
    """Return one uint8 image [H, W, C] as a picture: mode L for one channel, RGB for three."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_images(
    folder: Path, images: np.ndarray, labels: np.ndarray, png: bool, class_names: Sequence[str] | None = None
) -> Path:
    """Write `images.npz` to `folder` (images uint8 [N, H, W, C], labels int64 [N]) and return its path.

    class_names: in label order, also written there. With `png`, also write one file per image,
    `png/<number>_<label>.png`, and a table of them, `png.csv`, of the columns path and label (its name, if it has one).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "images.npz"
    arrays = {"images": images, "labels": labels.astype(np.int64)}
    if class_names is not None:
        arrays["class_names"] = np.array(class_names)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    if png:
        (folder / "png").mkdir(exist_ok=True)
        rows = []
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            name = f"{number:06d}_{label}.png"
            to_picture(image).save(folder / "png" / name)
            rows.append((name, label if class_names is None else class_names[label]))
        with (folder / "png.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    return path
