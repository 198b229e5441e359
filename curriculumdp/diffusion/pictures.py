"""Image arrays as files and grids for people to look at."""

import io
from collections.abc import Sequence

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


def npz_bytes(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None) -> bytes:
    """Return the content of `images.npz`: images uint8 [N, H, W, C], labels int64 [N], class_names in label order."""
    buffer = io.BytesIO()
    arrays = {"images": images, "labels": labels.astype(np.int64)}
    if class_names is not None:
        arrays["class_names"] = np.array(class_names)
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
