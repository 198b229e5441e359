"""Every mode of every format: converted exactly, converted as declared, or refused with the fix; never silently."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from curriculumdp.data.images import DataError
from curriculumdp.data.pictures import CONVERSIONS, picture_pixels
from curriculumdp.data.pixels import Conversion, Fact
from tests.support.made_pictures import chunk, png, tiff, write

RNG = np.random.default_rng(1)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (8, 8, 1), dtype=np.uint16)
HIDDEN = np.where(np.arange(8) < 4, 255, 0).astype(np.uint8) * np.ones((8, 1), dtype=np.uint8)  # alpha


def read(path: Path, **how: Any) -> np.ndarray:
    return picture_pixels(path, Conversion(**({"channels": 3, "size": 8} | how))).pixels


def refusal(path: Path, **how: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(path, **how)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Exactly as they are


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_grey_of_8_bits_is_exact(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read(tmp_path / f"a.{suffix}", channels=1)[0], GREY)
    assert np.array_equal(read(tmp_path / f"a.{suffix}")[2], GREY)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_colour_of_8_bits_is_exact(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}", lossless=True)
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_black_and_white_become_0_and_255(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY > 99).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read(tmp_path / f"a.{suffix}", channels=1)[0], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_a_palette_is_looked_up(tmp_path: Path, suffix: str) -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(
        read(tmp_path / f"a.{suffix}"), np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    )


def test_a_jpeg_in_ycbcr_is_decoded_to_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 40, 90)).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    assert np.abs(read(tmp_path / "a.jpg")[:, 4, 4].astype(int) - [200, 40, 90]).max() <= 2


@pytest.mark.parametrize("tile", [0, 16])
def test_a_tiled_tiff_is_the_same_as_one_in_strips(tmp_path: Path, tile: int) -> None:
    values = RNG.integers(0, 256, (32, 32, 1), dtype=np.uint8)
    path = write(tmp_path / "a.tif", tiff(values, 1, tile=tile))
    assert np.array_equal(read(path, channels=1, size=32)[0], values[..., 0])


# Which value is white


def test_white_is_zero_in_a_tiff_of_8_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", tiff(GREY[..., None], 0))
    assert np.array_equal(read(path, channels=1)[0], 255 - GREY)


def test_white_is_zero_in_a_tiff_of_16_bits(tmp_path: Path) -> None:
    """Pillow inverts 8 bits and leaves 16 as they are."""
    path = write(tmp_path / "a.tif", tiff(WIDE, 0))
    black = write(tmp_path / "b.tif", tiff(65535 - WIDE, 1))
    asked = {"channels": 1, "window": (1000, 60_000)}
    assert np.array_equal(read(path, **asked), read(black, **asked))
    assert read(black, **asked).std() > 50


def test_white_as_the_lowest_of_floats_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", tiff(GREY.astype(np.float32)[..., None], 0))
    assert "stores white as the lowest" in refusal(path, window=(0, 255))


# More than 8 bits


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "uint32", "float32"])
def test_a_deep_tiff_goes_through_the_window_by_its_own_values(tmp_path: Path, kind: str) -> None:
    values = np.full((8, 8, 1), 2000).astype(kind)
    values[0, :3, 0] = [500, 3500, 1000]
    if kind == "uint32":
        values[0, 1, 0] = 2**32 - 1  # Pillow reads it as -1
    path = write(tmp_path / "a.tif", tiff(values, 1))
    assert read(path, channels=1, window=(1000, 3000))[0, 0, :4].tolist() == [0, 255, 0, 128]


def test_a_set_of_mixed_depths_is_told_a_way_out(tmp_path: Path) -> None:
    """The fix for either file must not be what the other one refuses."""
    deep = write(tmp_path / "deep.png", png(WIDE, 0))
    shallow = write(tmp_path / "shallow.png", png(GREY[..., None], 0))
    assert "save images of 8 bits in the same set with 16 bits" in refusal(deep)
    assert "in a set that mixes depths, save this one with 16 bits" in refusal(shallow, window=(0, 255))
    widened = write(tmp_path / "widened.png", png(GREY[..., None].astype(np.uint16), 0))
    assert np.array_equal(read(widened, channels=1, window=(0, 255))[0], GREY)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_per_channel_are_refused_rather_than_halved(
    tmp_path: Path, colour: int, channels: int
) -> None:
    path = write(tmp_path / "a.png", png(np.zeros((8, 8, channels), dtype=np.uint16), colour))
    for window in (None, (0, 9)):
        assert "convert it to 8 bits" in refusal(path, window=window)


@pytest.mark.parametrize(("photometric", "channels"), [(2, 3), (5, 4)])
def test_a_tiff_of_16_bits_per_channel_is_refused(tmp_path: Path, photometric: int, channels: int) -> None:
    path = write(tmp_path / "a.tif", tiff(np.zeros((8, 8, channels), dtype=np.uint16), photometric))
    assert "convert it to 8 bits" in refusal(path)


def test_signed_values_of_8_bits_are_refused(tmp_path: Path) -> None:
    assert "signed 8-bit" in refusal(write(tmp_path / "a.tif", tiff(GREY.astype(np.int8)[..., None], 1)))


# Transparency


def transparent(path: Path, mode: str, **save: Any) -> Path:
    """A picture whose right half is hidden."""
    picture = Image.fromarray(COLOUR).convert(mode.removesuffix("A"))
    picture.putalpha(Image.fromarray(HIDDEN))
    picture.save(path, **save)
    return path


TRANSPARENT: dict[str, Callable[[Path], Path]] = {
    "RGBA in PNG": lambda folder: transparent(folder / "a.png", "RGBA"),
    "RGBA in WebP": lambda folder: transparent(folder / "a.webp", "RGBA", lossless=True),
    "RGBA in TIFF": lambda folder: transparent(folder / "a.tif", "RGBA"),
    "premultiplied RGBA in TIFF": lambda folder: write(
        folder / "a.tif",
        tiff(np.dstack([COLOUR * (HIDDEN[..., None] // 255), HIDDEN]), 2, t338=1),
    ),
    "LA in PNG": lambda folder: transparent(folder / "a.png", "LA"),
    "LA in TIFF": lambda folder: transparent(folder / "a.tif", "LA"),
    "premultiplied LA in TIFF": lambda folder: write(
        folder / "a.tif", tiff(np.dstack([GREY * (HIDDEN // 255), HIDDEN]), 1, t338=1)
    ),
    "a palette with a hidden colour in PNG": lambda folder: hidden_in_palette(folder / "a.png"),
    "a palette with a hidden colour in GIF": lambda folder: hidden_in_palette(folder / "a.gif"),
    "a hidden grey in PNG": lambda folder: write(
        folder / "a.png", png(HIDDEN[..., None], 0, chunk(b"tRNS", b"\0\0"))
    ),
    "a hidden colour in PNG": lambda folder: write(
        folder / "a.png", png(np.repeat(HIDDEN[..., None], 3, axis=2), 2, chunk(b"tRNS", bytes(6)))
    ),
}


def hidden_in_palette(path: Path) -> Path:
    picture = Image.fromarray((HIDDEN == 0).astype(np.uint8) * 5, "P")
    picture.putpalette([10, 200, 30] * 256)
    picture.save(path, transparency=5)
    return path


@pytest.mark.parametrize("what", TRANSPARENT)
def test_what_lies_under_transparency_is_never_trained_on(tmp_path: Path, what: str) -> None:
    path = TRANSPARENT[what](tmp_path)
    message = refusal(path)
    assert "partly transparent" in message
    assert "data.background" in message
    shown = read(path, background=(1, 128, 255))
    assert (shown[:, :, 4:] == np.array([1, 128, 255])[:, None, None]).all()
    assert (read(path, background=7, channels=1, to_grey=True)[0, :, 4:] == 7).all()
    assert picture_pixels(path, Conversion(3, 8, background=0)).facts & Fact.MADE_OPAQUE


def test_half_transparency_is_a_mixture(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 100, 51)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", background=255)[:, 0, 0].tolist() == [244, 204, 224]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_that_hides_nothing_needs_no_background(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOUR).convert(mode.removesuffix("A"))
    picture.putalpha(255)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def test_a_deep_picture_with_transparency_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(WIDE, 0, chunk(b"tRNS", b"\0\0")))
    assert "save it without transparency" in refusal(path, window=(0, 9), background=0)


def test_channels_of_unstated_meaning_are_not_dropped(tmp_path: Path) -> None:
    for channels, photometric in ((2, 1), (4, 2), (5, 2)):
        extra = np.zeros((8, 8, channels), dtype=np.uint8)
        path = write(tmp_path / "a.tif", tiff(extra, photometric, t338=0))
        assert "unstated meaning" in refusal(path) or "cannot be read" in refusal(path)


# Colour


def with_profile(path: Path, picture: Image.Image, profile: bytes) -> Path:
    picture.save(path, icc_profile=profile)
    return path


def rgb_profile() -> bytes:
    """sRGB with red and blue exchanged, and another name."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = content.index(b"rXYZ"), content.index(b"bXYZ")
    content[red : red + 4], content[blue : blue + 4] = b"bXYZ", b"rXYZ"
    for name in ("sRGB".encode("utf-16-be"), b"sRGB"):
        content = content.replace(name, name.replace(b"s", b"x"))
    return bytes(content)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path, suffix: str) -> None:
    picture = Image.new("RGB", (8, 8), (255, 0, 0))
    plain = write_plain(tmp_path / f"plain.{suffix}", picture)
    path = with_profile(tmp_path / f"a.{suffix}", picture, rgb_profile())
    red, blue = read(plain)[:, 4, 4], read(path)[:, 4, 4]
    assert (red > 128).tolist() == [True, False, False]
    assert (blue > 128).tolist() == [False, False, True]
    assert picture_pixels(path, Conversion(3, 8)).facts & Fact.COLOUR_PROFILE


def write_plain(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


def test_srgb_that_says_so_is_exact(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = with_profile(tmp_path / "a.png", Image.fromarray(COLOUR), profile)
    assert np.array_equal(read(path), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("profile", [b"junk", b"\0" * 200, "cut"])
def test_a_damaged_profile_is_named(tmp_path: Path, profile: bytes | str) -> None:
    content = rgb_profile()[:150] if isinstance(profile, str) else profile
    assert "damaged colour profile" in refusal(
        with_profile(tmp_path / "a.png", Image.fromarray(COLOUR), content)
    )


def test_a_profile_of_other_colours_is_refused(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert "does not fit its colours" in refusal(
        with_profile(tmp_path / "a.png", Image.fromarray(COLOUR), lab)
    )


def grey_profile() -> bytes:
    """A profile of grey with the tone curve x: linear light."""
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0\0\0\0\0",
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 7) + b"linear\0" + bytes(78),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, unpadded in tags.items():
        content = unpadded + bytes(-len(unpadded) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    size = struct.pack(">I", start + len(body))
    head = size + bytes(4) + struct.pack(">I", 0x02400000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + table + body


def test_a_profile_of_grey_applies_to_grey(tmp_path: Path) -> None:
    path = with_profile(tmp_path / "a.png", Image.new("L", (8, 8), 55), grey_profile())
    assert (np.abs(read(path, channels=1)[0].astype(int) - 128) <= 1).all()  # linear 55/255 is sRGB 128/255
    assert np.ptp(read(path)[:, 0, 0]) == 0


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_without_a_profile_is_refused(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / f"a.{suffix}")
    assert "convert it to RGB" in refusal(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_colour_spaces_of_tiff_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    assert "convert it to RGB" in refusal(tmp_path / "a.tif")


# How it lies


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path, turn: int, suffix: str) -> None:
    picture = Image.new("L", (16, 8))
    picture.paste(255, (0, 0, 8, 4))  # the upper left
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    decoded = picture_pixels(tmp_path / f"a.{suffix}", Conversion(1, 8, fit="stretch", to_grey=True))
    corners = decoded.pixels[0, [0, 0, 7, 7], [0, 7, 0, 7]] > 128
    upper_left_goes_to = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[turn]
    assert np.flatnonzero(corners).tolist() == [upper_left_goes_to]
    assert bool(decoded.facts & Fact.TURNED) == (turn != 1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_several_frames_or_pages_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 99)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert "save the one to use as its own file" in refusal(tmp_path / f"a.{suffix}")


def test_every_mode_that_pillow_knows_is_in_the_table_or_refused() -> None:
    """HSV and RGBX are modes of no file that is read; I;16N is never a file's."""
    assert {mode for mode in Image.MODES if mode not in CONVERSIONS} <= {"HSV", "RGBX", "I;16N"}


def test_a_picture_in_memory_is_read_like_a_file() -> None:
    from curriculumdp.data.pictures import picture_from

    content = io.BytesIO(png(GREY[..., None], 0))
    assert np.array_equal(picture_from(content, "member", Conversion(1, 8)).pixels[0], GREY)
    with pytest.raises(DataError, match=r"^member: cannot"):
        picture_from(io.BytesIO(b"junk"), "member", Conversion(1, 8))
