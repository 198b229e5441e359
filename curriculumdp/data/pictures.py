"""Picture files: opened safely, and each of their modes converted as one table says.

Exact: 1, 2, 4 and 8 bits of grey, palettes, RGB, alpha that hides nothing. By a public option: transparency
(data.background), more than 8 bits (data.window). By the file itself: a colour profile is converted to sRGB, a picture
that its camera marked as turned is turned back. All else is refused with the fix.
"""

import io
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from curriculumdp.data.images import BadImage
from curriculumdp.data.pixels import Conversion, Decoded, Fact, Unusable, fitted, refuse_window, windowed

# A larger image is refused from its header, before memory is allocated; Pillow warns of larger ones only.
MAX_PIXELS = 64_000_000
MAX_PROFILE = 2**22  # bytes
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Raster formats whose decoders run no other program (Pillow passes EPS to Ghostscript).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
PHOTOMETRIC, ORIENTATION, SAMPLES, SAMPLE_FORMAT = 262, 274, 277, 339  # TIFF's tags
WHITE_IS_ZERO, SIGNED = 0, 2


def picture_pixels(path: Path, how: Conversion) -> Decoded:
    """Return the image in a file. Raises DataError that names the file."""
    return picture_from(path, str(path), how)


def picture_from(file: Path | IO[bytes], name: str, how: Conversion) -> Decoded:
    """Return the image in `file`, which `name` names in errors. Raises DataError."""
    try:
        picture = Image.open(file, formats=FORMATS)
    except Exception as error:  # on damaged files decoders raise anything
        raise BadImage(name, f"cannot be read as an image ({_short(error)}): fix or remove it") from None
    with picture:
        try:
            return _converted(picture, how)
        except Unusable as error:
            raise BadImage(name, str(error)) from None
        except Exception as error:
            raise BadImage(name, f"is damaged ({_short(error)}): fix or remove it") from None


def _converted(picture: ImageFile.ImageFile, how: Conversion) -> Decoded:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise Unusable(f"{width}x{height} pixels are too many (at most {MAX_PIXELS}): scale it down")
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # MPO: a JPEG with a preview
        raise Unusable("has several frames: save the one to use as its own file")
    # Pillow would silently keep the high byte of each channel.
    if len(picture.getbands()) > 1 and any(";16" in str(tile[3]) for tile in picture.tile):
        raise Unusable("is a colour image with 16 bits per channel: convert it to 8 bits")
    if picture.format == "TIFF":
        _refuse_from_tags(picture)
    convert = CONVERSIONS.get(picture.mode)
    if convert is None:
        raise Unusable(f"has the mode {picture.mode}, whose colours are not understood: convert it to RGB")
    turned = picture.getexif().get(ORIENTATION, 1) != 1
    upright = ImageOps.exif_transpose(picture)
    shallow, facts = convert(upright, picture, how)
    pixels, more = fitted(shallow, how)
    return Decoded(pixels, facts | more | Fact.TURNED * turned)


def _refuse_from_tags(picture: ImageFile.ImageFile) -> None:
    """Raise Unusable for a TIFF that Pillow would read as something else than what its tags declare."""
    tags = picture.tag_v2  # type: ignore[attr-defined]
    if tags.get(SAMPLES, 1) > len(picture.getbands()):
        raise Unusable("has channels of unstated meaning beside its colours: save it without them")
    if picture.mode == "L" and SIGNED in tags.get(SAMPLE_FORMAT, (1,)):
        raise Unusable("has signed 8-bit values: save it with 16 bits and set data.window=[low, high]")
    if picture.mode in ("I", "F") and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise Unusable("stores white as the lowest of 32-bit values: save it with black as the lowest")


# The colour spaces of profiles that are converted to sRGB, and Pillow's modes for them.
PROFILED = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
Shallow = tuple[Image.Image, Fact]
Convert = Callable[[Image.Image, ImageFile.ImageFile, Conversion], Shallow]


def _grey(upright: Image.Image, picture: ImageFile.ImageFile, how: Conversion) -> Shallow:
    """1 bit becomes 0 and 255; 2 and 4 bits come as 8, scaled exactly."""
    return _opaque(upright, "LA" if upright.has_transparency_data else "L", picture, how)


def _colour(upright: Image.Image, picture: ImageFile.ImageFile, how: Conversion) -> Shallow:
    return _opaque(upright, "RGBA" if upright.has_transparency_data else "RGB", picture, how)


def _opaque(upright: Image.Image, mode: str, picture: ImageFile.ImageFile, how: Conversion) -> Shallow:
    """Return the picture as sRGB or grey, over the background where it is transparent."""
    refuse_window(how)
    # Pillow converts premultiplied colours to their own kind only.
    plain = upright.convert({"La": "LA", "RGBa": "RGBA"}.get(upright.mode, upright.mode)).convert(mode)
    alpha = plain.getchannel("A") if mode.endswith("A") else None
    colours, facts = _in_srgb(plain.convert(mode.removesuffix("A")), picture)
    if alpha is None or alpha.getextrema() == (255, 255):
        return colours, facts
    if how.backdrop is None:
        raise Unusable(
            "is partly transparent, and what lies under transparency is not meant to be seen: set data.background to "
            "the colour to show there, such as 255 for white, or save it without transparency"
        )
    shown = Image.new("RGBA", plain.size, (*how.backdrop, 255))
    over = colours.convert("RGBA")
    over.putalpha(alpha)
    shown.alpha_composite(over)
    grey = colours.mode == "L" and len(set(how.backdrop)) == 1
    return shown.getchannel("R") if grey else shown.convert("RGB"), facts | Fact.MADE_OPAQUE


def _cmyk(upright: Image.Image, picture: ImageFile.ImageFile, how: Conversion) -> Shallow:
    refuse_window(how)
    if not picture.info.get("icc_profile"):
        raise Unusable("is CMYK without a colour profile, so its colours are not defined: convert it to RGB")
    return _in_srgb(upright, picture)


def _deep(upright: Image.Image, picture: ImageFile.ImageFile, how: Conversion) -> Shallow:
    """Values as they are stored go through the window; a colour profile does not apply to them."""
    if upright.has_transparency_data:
        raise Unusable("has more than 8 bits and is transparent: save it without transparency")
    values = np.asarray(upright)
    tags = getattr(picture, "tag_v2", {})
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 65535 - values  # Pillow inverts 8 bits but not 16
    if picture.mode == "I" and tags.get(SAMPLE_FORMAT, (SIGNED,)) == (1,):
        values = values.view(np.uint32)  # Pillow takes unsigned values for signed ones
    return Image.fromarray(windowed(values, how.window)), Fact(0)


def _refused(reason: str) -> Convert:
    def refuse(upright: Image.Image, picture: ImageFile.ImageFile, how: Conversion) -> Shallow:
        raise Unusable(reason)

    return refuse


# What becomes of each of Pillow's modes; a mode that is not here is refused.
CONVERSIONS: dict[str, Convert] = {
    "1": _grey,
    "L": _grey,
    "LA": _grey,
    "La": _grey,
    "P": _colour,
    "PA": _colour,
    "RGB": _colour,
    "RGBA": _colour,
    "RGBa": _colour,
    "CMYK": _cmyk,
    "I;16": _deep,
    "I;16B": _deep,
    "I;16L": _deep,
    "I": _deep,
    "F": _deep,
    "YCbCr": _refused("holds YCbCr outside of JPEG, whose range is not defined: convert it to RGB"),
    "LAB": _refused("holds L*a*b* colours: convert it to RGB"),
}


def _in_srgb(colours: Image.Image, picture: ImageFile.ImageFile) -> Shallow:
    """Return a picture of mode L, RGB or CMYK in sRGB, by its file's colour profile; without one it is sRGB."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return colours, Fact(0)
    if len(profile) > MAX_PROFILE:
        raise Unusable(f"has a colour profile of more than {MAX_PROFILE} bytes: convert it to sRGB")
    try:
        transform, space = _transform(bytes(profile))
    except Exception:  # littlecms tells no more
        raise Unusable("has a damaged colour profile: convert it to sRGB or remove the profile") from None
    wanted = PROFILED.get(space)
    if wanted is None or (wanted != colours.mode and "CMYK" in (wanted, colours.mode)):
        raise Unusable(f"has a colour profile for {space} that does not fit its colours: convert it to sRGB")
    if transform is None:
        return colours, Fact(0)
    grey = colours.mode == "L" or wanted == "L"
    converted = transform.apply(colours.convert(wanted))
    return converted.getchannel("G") if grey else converted, Fact.COLOUR_PROFILE


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """Return the transform to sRGB (None: it is sRGB already) and the profile's colour space."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    known = space == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower()
    if known or space not in PROFILED:
        return None, space
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), PROFILED[space], "RGB"), space


def _short(error: Exception) -> str:
    """Return the reason without the file's name, so that files with the same fault can be named together."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:120] or type(error).__name__
