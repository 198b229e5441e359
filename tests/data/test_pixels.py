"""One picture becomes one array, or is refused by its file's name."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data.images import DataError
from curriculumdp.data.pictures import picture_pixels
from curriculumdp.data.pixels import Conversion, Fact, Unusable, array_picture, counted

RNG = np.random.default_rng(0)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels_of(path: Path, channels: int, **more: Any) -> np.ndarray:
    return picture_pixels(path, Conversion(channels, 8, **more)).pixels


def refusal(path: Path, window: tuple[float, float] | None = None) -> str:
    with pytest.raises(DataError) as raised:
        pixels_of(path, 1, window=window)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(pixels_of(tmp_path / "a.png", 3), values.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_shallow_mode_becomes_the_declared_channels(tmp_path: Path, mode: str, channels: int) -> None:
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.png")
    pixels = pixels_of(tmp_path / "a.png", channels)
    assert (pixels.shape, pixels.dtype, int(pixels.min())) == ((channels, 8, 8), np.uint8, 255)


def test_a_large_picture_is_cut_at_its_centre_and_averaged(tmp_path: Path) -> None:
    values = np.zeros((32, 64), dtype=np.uint8)
    values[:, 16:48] = np.indices((32, 32)).sum(0) % 2 * 200  # a chequer-board, whose mean is 100
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = pixels_of(tmp_path / "a.png", 1)
    assert pixels[0, 1:-1, 1:-1].min() >= 95
    assert pixels[0, 1:-1, 1:-1].max() <= 105


def test_a_small_picture_is_enlarged(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 90).save(tmp_path / "a.png")
    assert (pixels_of(tmp_path / "a.png", 1) == 90).all()


def test_a_picture_that_a_camera_turned_is_turned_back(tmp_path: Path) -> None:
    values = np.zeros((8, 8), dtype=np.uint8)
    values[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert (pixels_of(tmp_path / "a.png", 1)[0, -1] == 255).all()


def test_16_bits_need_a_window_and_follow_it(tmp_path: Path) -> None:
    values = np.full((8, 8), 2000, dtype=np.uint16)
    values[0, :3] = [500, 3500, 1000]
    Image.fromarray(values).save(tmp_path / "a.png")
    assert "data.window=[low, high]" in refusal(tmp_path / "a.png")
    pixels = pixels_of(tmp_path / "a.png", 1, window=(1000, 3000))
    assert pixels[0, 0, :4].tolist() == [0, 255, 0, 128]


def test_a_float_picture_needs_a_window_and_finite_values(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "data.window" in refusal(tmp_path / "a.tif")
    assert pixels_of(tmp_path / "a.tif", 3, window=(0, 1))[2, 0, 0] == 128
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    assert "not finite" in refusal(tmp_path / "b.tif", (0, 1))


def test_a_window_for_an_8_bit_picture_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert "remove data.window" in refusal(tmp_path / "a.png", (0, 9))


def test_16_bit_colour_is_refused_rather_than_halved(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 8, 16, 2, b"".join(b"\0" + bytes(48) for _ in range(8))))
    assert "16 bits per channel" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("side", [9_000, 20_000, 2**30])
def test_a_huge_picture_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 0, bytes(10)))
    assert "too many" in refusal(tmp_path / "bomb.png") or "exceeds" in refusal(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif"])
@pytest.mark.parametrize("kept", [0, 20, 0.6])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if kept < 1 else int(kept)])
    assert "cannot be read as an image" in refusal(path) or "is damaged" in refusal(path)


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert "is damaged" in refusal(path)


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    assert "cannot be read as an image" in refusal(tmp_path / "a.png")


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 99)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert "several frames" in refusal(tmp_path / "a.tif")


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.png")


def test_an_image_is_prepared_alike_from_a_file_and_from_an_array(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    for how in (Conversion(1, 8, to_grey=True), Conversion(3, 8), Conversion(3, 8, fit="stretch")):
        from_file, from_array = picture_pixels(tmp_path / "a.png", how), array_picture(values, how)
        assert np.array_equal(from_file.pixels, from_array.pixels)
        assert from_file.facts == from_array.facts


FRAMED = np.zeros((8, 16), dtype=np.uint8)
FRAMED[:, 4:12] = 100
FRAMED[:, 0], FRAMED[:, -1] = 250, 250


@pytest.mark.parametrize("upright", [False, True])
def test_a_rectangle_is_cropped_padded_or_stretched_as_declared(upright: bool) -> None:
    values = (FRAMED.T if upright else FRAMED)[..., None]

    def fitted(**how: Any) -> np.ndarray:
        decoded = array_picture(values, Conversion(1, 8, **how))
        assert decoded.facts & Fact.NOT_SQUARE
        return decoded.pixels[0].T if upright else decoded.pixels[0]

    assert (fitted() == 100).all()
    padded = fitted(fit="pad", background=7)
    assert (padded[:2] == 7).all()
    assert (padded[6:] == 7).all()
    assert padded[2:6, 0].min() > 100
    stretched = fitted(fit="stretch")
    assert stretched[0, 0] > 100
    assert (stretched[:, 3:5] == 100).all()


def test_padding_needs_a_colour_and_shows_it() -> None:
    with pytest.raises(Unusable, match="background"):
        array_picture(FRAMED[..., None], Conversion(1, 8, fit="pad"))
    pixels = array_picture(FRAMED[..., None], Conversion(3, 8, fit="pad", background=(1, 2, 3))).pixels
    assert pixels[:, 0, 0].tolist() == [1, 2, 3]


def test_colour_becomes_grey_only_where_that_is_declared() -> None:
    values = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with pytest.raises(Unusable, match="to_grey=true"):
        array_picture(values, Conversion(1, 8))
    made = array_picture(values, Conversion(1, 8, to_grey=True))
    assert np.array_equal(made.pixels[0], np.asarray(Image.fromarray(values).convert("L")))
    assert made.facts & Fact.MADE_GREY


def test_grey_that_is_stored_as_colour_stays_what_it_is() -> None:
    grey = RNG.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    for to_grey in (False, True):
        made = array_picture(np.repeat(grey, 3, axis=2), Conversion(1, 8, to_grey=to_grey))
        assert np.array_equal(made.pixels[0], grey[..., 0])
        assert not made.facts & Fact.MADE_GREY


def test_the_counts_of_what_was_done_add_up() -> None:
    made = [Fact.READY, Fact.READY | Fact.NOT_SQUARE, Fact.READY | Fact.NOT_SQUARE | Fact.MADE_GREY]
    counts = counted(made)
    assert (counts["ready"], counts["not_square"], counts["made_grey"], counts["turned"]) == (3, 2, 1, 0)


@pytest.mark.parametrize(
    "how", [{}, {"to_grey": True}, {"fit": "pad", "background": 3}, {"background": (1, 2, 3)}]
)
def test_what_will_be_done_is_said_without_a_look_at_the_images(how: dict[str, Any]) -> None:
    line = Conversion(1, 8, **how).line()
    assert "not square" in line
    assert ("grey" in line) == ("to_grey" in how)
    assert ("data.background" in line) == ("background" in how)
