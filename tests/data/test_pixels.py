"""One picture becomes one array, or is refused by its file's name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data.images import DataError
from curriculumdp.data.pixels import array_pixels, picture_pixels

RNG = np.random.default_rng(0)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(path: Path, window: tuple[float, float] | None = None) -> str:
    with pytest.raises(DataError) as raised:
        picture_pixels(path, 1, 8, window)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(picture_pixels(tmp_path / "a.png", 3, 8, None), values.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_shallow_mode_becomes_the_declared_channels(tmp_path: Path, mode: str, channels: int) -> None:
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.png")
    pixels = picture_pixels(tmp_path / "a.png", channels, 8, None)
    assert (pixels.shape, pixels.dtype, int(pixels.min())) == ((channels, 8, 8), np.uint8, 255)


def test_a_large_picture_is_cut_at_its_centre_and_averaged(tmp_path: Path) -> None:
    values = np.zeros((32, 64), dtype=np.uint8)
    values[:, 16:48] = np.indices((32, 32)).sum(0) % 2 * 200  # a chequer-board, whose mean is 100
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = picture_pixels(tmp_path / "a.png", 1, 8, None)
    assert pixels[0, 1:-1, 1:-1].min() >= 95
    assert pixels[0, 1:-1, 1:-1].max() <= 105


def test_a_small_picture_is_enlarged(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 90).save(tmp_path / "a.png")
    assert (picture_pixels(tmp_path / "a.png", 1, 8, None) == 90).all()


def test_a_picture_that_a_camera_turned_is_turned_back(tmp_path: Path) -> None:
    values = np.zeros((8, 8), dtype=np.uint8)
    values[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert (picture_pixels(tmp_path / "a.png", 1, 8, None)[0, -1] == 255).all()


def test_16_bits_need_a_window_and_follow_it(tmp_path: Path) -> None:
    values = np.full((8, 8), 2000, dtype=np.uint16)
    values[0, :3] = [500, 3500, 1000]
    Image.fromarray(values).save(tmp_path / "a.png")
    assert "data.window=[low, high]" in refusal(tmp_path / "a.png")
    pixels = picture_pixels(tmp_path / "a.png", 1, 8, (1000, 3000))
    assert pixels[0, 0, :4].tolist() == [0, 255, 0, 128]


def test_a_float_picture_needs_a_window_and_finite_values(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "data.window" in refusal(tmp_path / "a.tif")
    assert picture_pixels(tmp_path / "a.tif", 3, 8, (0, 1))[2, 0, 0] == 128
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
    for channels in (1, 3):
        from_file = picture_pixels(tmp_path / "a.png", channels, 8, None)
        assert np.array_equal(from_file, array_pixels(values[None], channels, 8, None)[0])


def test_an_image_is_prepared_alike_whoever_stands_beside_it() -> None:
    images = RNG.integers(0, 256, (5, 12, 12, 1), dtype=np.uint8)
    alone = array_pixels(images[2:3], 1, 8, None)
    assert np.array_equal(array_pixels(images, 1, 8, None)[2:3], alone)
