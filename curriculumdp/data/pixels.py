"""Depth, geometry and channels: an image of any size becomes uint8 [C, size, size].

Each image is converted on its own, in the same way: no code here looks at two images, so a unit's pixels do not
depend on another unit. Where something would be lost, a public option says so or the image is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

Fit = Literal["crop", "pad", "stretch"]
FITS: dict[Fit, str] = {
    "crop": "cut to their centre square",
    "pad": "padded to a square with data.background",
    "stretch": "stretched to a square",
}


class Unusable(ValueError):
    """An image that cannot be used. The message is the reason and the fix; the caller adds the image's name."""


@dataclass(frozen=True)
class Conversion:
    """How images become uint8 [channels, size, size]. PUBLIC: the config declares all of it.

    window: the values of deeper images that become black and white; fit: what happens to rectangles; background: what
    transparency and padding show, grey or RGB, 0..255; to_grey: whether colour may become grey.
    """

    channels: int
    size: int
    window: tuple[float, float] | None = None
    fit: Fit = "crop"
    background: int | tuple[int, int, int] | None = None
    to_grey: bool = False

    @property
    def backdrop(self) -> tuple[int, int, int] | None:
        """The background as RGB."""
        return (self.background,) * 3 if isinstance(self.background, int) else self.background

    def line(self) -> str:
        """Return what is done to the images, in words; it depends on the config alone, never on the data."""
        made = [f"those that are not square are {FITS[self.fit]} (data.fit={self.fit})"]
        if self.to_grey:
            made.append("colour becomes grey (data.to_grey)")
        if self.background is not None:
            made.append(f"transparency shows data.background={self.background}")
        return f"images of {self.size}x{self.size} pixels: {'; '.join(made)}"


class Fact(IntFlag):
    """PRIVATE: what was done to an image, one byte. READY marks an image as decoded."""

    READY = 1
    NOT_SQUARE = 2
    ENLARGED = 4
    MADE_GREY = 8
    MADE_OPAQUE = 16
    COLOUR_PROFILE = 32
    TURNED = 64


class Decoded(NamedTuple):
    """An image, uint8 [channels, size, size], and what was done to it. PRIVATE."""

    pixels: np.ndarray
    facts: Fact


def windowed(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Return the values as uint8: `window`'s low maps to 0 and its high to 255; values outside are clamped."""
    if window is None:
        raise Unusable(
            "has more than 8 bits: set the values for black and white with data.window=[low, high], and save images "
            "of 8 bits in the same set with 16 bits, on the same scale"
        )
    low, high = window
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values.astype(np.float64) - low) / (high - low)
    if not np.isfinite(scaled).all():
        raise Unusable("has values that are not finite (NaN or infinity): replace them")
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)


def refuse_window(how: Conversion) -> None:
    """Raise Unusable if a window is declared: call it for an image of 8 bits."""
    if how.window is not None:
        raise Unusable(
            "has 8 bits per channel but data.window is for deeper images: remove data.window if all images have 8 "
            "bits; in a set that mixes depths, save this one with 16 bits on the scale of the others"
        )


def array_picture(image: np.ndarray, how: Conversion) -> Decoded:
    """Convert one image [H, W, 1 or 3], uint8 or (with a window) any deeper numbers. Raises Unusable."""
    if image.dtype == np.uint8:
        refuse_window(how)
        if image.shape == (how.size, how.size, how.channels):
            return Decoded(image.transpose(2, 0, 1), Fact.READY)
        shallow = image
    else:
        shallow = windowed(image, how.window)
    return fitted(Image.fromarray(shallow[:, :, 0] if shallow.shape[2] == 1 else shallow), how)


def fitted(picture: Image.Image, how: Conversion) -> Decoded:
    """Return a picture of mode L or RGB at the declared size and channels. Raises Unusable."""
    facts = Fact.READY
    if picture.size != (how.size, how.size):
        facts |= Fact.NOT_SQUARE * (picture.width != picture.height)
        facts |= Fact.ENLARGED * (max(picture.size) < how.size)
        picture = _resized(picture, how)
    values = np.asarray(picture)
    if how.channels == 1 and values.ndim == 3:
        if (values == values[:, :, :1]).all():
            return Decoded(values[None, :, :, 0], facts)
        if not how.to_grey:
            raise Unusable(
                "is in colour but data.channels = 1: set data.to_grey=true to train on its luminance, or "
                "data.channels=3"
            )
        return Decoded(np.asarray(picture.convert("L"))[None], facts | Fact.MADE_GREY)
    if how.channels == 3 and values.ndim == 2:
        values = np.repeat(values[:, :, None], 3, axis=2)
    return Decoded(values[None] if values.ndim == 2 else values.transpose(2, 0, 1), facts)


def _resized(picture: Image.Image, how: Conversion) -> Image.Image:
    width, height = picture.size
    # Pillow widens the bilinear kernel when shrinking, which avoids aliasing.
    bilinear, gap, whole = Image.Resampling.BILINEAR, 3.0, (how.size, how.size)
    if how.fit == "stretch":
        return picture.resize(whole, bilinear, reducing_gap=gap)
    if how.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return picture.resize(whole, bilinear, box=box, reducing_gap=gap)
    if how.backdrop is None:
        raise Unusable("data.fit=pad needs data.background: set what the padding shows, such as 0")
    scale = how.size / max(width, height)
    inner = picture.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), bilinear, reducing_gap=gap
    )
    if picture.mode == "L" and len(set(how.backdrop)) > 1:
        inner = inner.convert("RGB")
    padded = Image.new(inner.mode, whole, how.backdrop[0] if inner.mode == "L" else how.backdrop)
    padded.paste(inner, ((how.size - inner.width) // 2, (how.size - inner.height) // 2))
    return padded


def counted(facts: Iterable[int]) -> dict[str, int]:
    """Return how many images each fact is true of. PRIVATE."""
    table = np.fromiter(facts, dtype=np.uint8)
    return {fact.name.lower(): int(np.count_nonzero(table & fact)) for fact in Fact if fact.name}
