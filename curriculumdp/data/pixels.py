"""Conversion of images of any size and depth to uint8 [C, size, size]: window, colour, centre crop, resize.

Each image is converted on its own, in the same way: no code here looks at two images, so a unit's pixels do not
depend on another unit.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from curriculumdp.data.images import DataError

# A larger image is refused from its header, before memory is allocated.
MAX_PIXELS = 64_000_000
# Raster formats whose decoders run no other program (Pillow passes EPS to Ghostscript).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")


def picture_pixels(path: Path, channels: int, size: int, window: tuple[float, float] | None) -> np.ndarray:
    """Return the image in a file as uint8 [channels, size, size]. Raises DataError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
    except Exception as error:  # on damaged files decoders raise anything
        raise DataError(f"{path}: cannot be read as an image ({_short(error)}): fix or remove it") from None
    with picture:
        try:
            _refuse_from_header(path, picture, window)
            return _fitted(ImageOps.exif_transpose(picture), channels, size, window)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path}: is damaged ({_short(error)}): fix or remove it") from None


def _refuse_from_header(path: Path, picture: ImageFile.ImageFile, window: tuple[float, float] | None) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels are too many (at most {MAX_PIXELS}): scale it down")
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # MPO: a JPEG with a preview
        raise DataError(f"{path}: has several frames: save the one to use as its own file")
    deep = picture.mode in DEEP_MODES
    # Pillow would silently keep the high byte of each channel.
    if not deep and any(raw in str(tile[3]) for tile in picture.tile for raw in (";16B", ";16L", ";16N")):
        raise DataError(f"{path}: is a colour image with 16 bits per channel: convert it to 8 bits")
    if deep and window is None:
        raise DataError(
            f"{path}: has more than 8 bits: set the values for black and white with data.window=[low, high]"
        )
    if not deep and window is not None:
        raise DataError(
            f"{path}: has 8 bits per channel but data.window is for deeper images: remove data.window"
        )


def array_pixels(
    images: np.ndarray, channels: int, size: int, window: tuple[float, float] | None
) -> np.ndarray:
    """Convert uint8 or uint16 images [N, H, W, 1 or 3] to uint8 [N, channels, size, size]."""
    if images.dtype == np.uint8 and images.shape[1:] == (size, size, channels):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    fitted = np.empty((len(images), channels, size, size), dtype=np.uint8)
    for row, image in enumerate(images):
        shallow = image if image.dtype == np.uint8 else _windowed(image, window)
        picture = Image.fromarray(shallow[:, :, 0] if shallow.shape[2] == 1 else shallow)
        fitted[row] = _fitted(picture, channels, size, None)
    return fitted


def _windowed(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Return the values as uint8: `window`'s low maps to 0 and its high to 255; values outside are clamped."""
    assert window is not None
    low, high = window
    scaled = (values.astype(np.float64) - low) / (high - low)
    if not np.isfinite(scaled).all():
        raise ValueError("values are not finite")
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)


def _fitted(picture: Image.Image, channels: int, size: int, window: tuple[float, float] | None) -> np.ndarray:
    if window is not None:
        picture = Image.fromarray(_windowed(np.asarray(picture), window))
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (size, size):
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        # Pillow widens the bilinear kernel when shrinking, which avoids aliasing.
        picture = picture.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
            reducing_gap=3.0,
        )
    values = np.asarray(picture)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
