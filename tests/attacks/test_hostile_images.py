"""Huge, malformed and damaged images are refused by their file's name, in little memory, whatever bytes they hold."""

import gzip
import io
import random
import resource
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data.images import DataError
from curriculumdp.data.pictures import picture_pixels
from curriculumdp.data.pixels import Conversion
from curriculumdp.data.sources import load_images
from tests.support.runs import in_child
from tests.support.tried import TRIED

SEED = 6
# More than any refusal may need beside what the process holds already.
ROOM = 128 * 2**20
BOMB = zlib.compress(bytes(200 * 2**20), 1)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes, bits: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def saved(form: str, size: tuple[int, int] = (48, 48), **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **options)
    return file.getvalue()


def animated(form: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 90, 200)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose frame header declares another size."""
    content = bytearray(saved("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp_of_size(width: int, height: int) -> bytes:
    content = bytearray(saved("BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def gif_of_size(width: int, height: int) -> bytes:
    content = bytearray(saved("GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def tiff_of_size(size: int) -> bytes:
    """A TIFF (little-endian) whose width and height tags declare another size."""
    content = bytearray(saved("TIFF"))
    for tag in (256, 257):
        for kind in (3, 4):
            head = struct.pack("<HHI", tag, kind, 1)
            if (place := content.find(head)) >= 0:
                content[place : place + 12] = struct.pack("<HHII", tag, 4, 1, size)
    return bytes(content)


PICTURES: dict[str, Callable[[], bytes]] = {
    "a PNG header of 8e8 pixels": lambda: png(30_000, 30_000),
    "a PNG header of 4e18 pixels": lambda: png(2**31 - 1, 2**31 - 1),
    "a PNG of no width": lambda: png(0, 8),
    "a PNG with a text that unpacks to 200 MB": lambda: png(
        8, 8, chunk(b"zTXt", b"a\0\0" + BOMB), rows=bytes(72)
    ),
    "a PNG with a colour profile that unpacks to 200 MB": lambda: png(
        8, 8, chunk(b"iCCP", b"a\0\0" + BOMB), rows=bytes(72)
    ),
    "a PNG whose rows are missing": lambda: png(4000, 4000, rows=bytes(10)),
    "a PNG of 16 bits without a window": lambda: png(8, 8, bits=16, rows=bytes(8 * 17)),
    "a PNG of 16 bits in colour": lambda: png(8, 8, bits=16, colour=2, rows=bytes(8 * 49)),
    "an animated PNG": lambda: animated("PNG"),
    "an animated GIF": lambda: animated("GIF"),
    "an animated WebP": lambda: animated("WEBP"),
    "a TIFF of several pages": lambda: animated("TIFF"),
    "a JPEG header of 4e9 pixels": lambda: jpeg_of_size(65_500, 65_500),
    "a JPEG of no height": lambda: jpeg_of_size(8, 0),
    "a BMP header of 4e18 pixels": lambda: bmp_of_size(2**31 - 1, 2**31 - 1),
    "a BMP of no width": lambda: bmp_of_size(0, 8),
    "a GIF screen of 4e9 pixels": lambda: gif_of_size(65_535, 65_535),
    "a TIFF header of 1e18 pixels": lambda: tiff_of_size(10**9),
    "a TIFF of no pixels": lambda: tiff_of_size(0),
    "zeros": lambda: bytes(10_000),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    "an icon": lambda: saved("ICO", (16, 16)),
    "nothing": lambda: b"",
}


def npy(shape: tuple[int, ...], kind: str = "|u1", body: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def npz(path: Path, lie: int | None = None, **members: bytes) -> None:
    """An archive; with `lie` its table says that images.npy unpacks to that many bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
        if lie is not None:
            archive.getinfo("images.npy").file_size = lie


LABELS = npy((4,), "<i8", bytes(32))


def huge_npz(folder: Path) -> None:
    head = npy((4, 2**19, 2**19))
    npz(folder / "data.npz", len(head) + 2**40, images=head, labels=LABELS)


def long_npz(folder: Path) -> None:
    head = npy((2**40, 1, 1))
    npz(folder / "data.npz", len(head) + 2**40, images=head, labels=npy((2**40,)))


def lying_npz(folder: Path) -> None:
    npz(folder / "data.npz", images=npy((4, 2**19, 2**19)), labels=LABELS)


def negative_npz(folder: Path) -> None:
    npz(folder / "data.npz", images=npy((4, -2, -8), body=bytes(64)), labels=LABELS)


def wide_header_npz(folder: Path) -> None:
    npz(folder / "data.npz", images=npy((1,) * 15_000), labels=LABELS)


def wrong_mode_npz(folder: Path) -> None:
    npz(folder / "data.npz", images=npy((4, 8, 8), "<f8", bytes(4 * 64 * 8)), labels=LABELS)


def deep_npz(folder: Path) -> None:
    npz(folder / "data.npz", images=npy((4, 8, 8), "<u2", bytes(4 * 64 * 2)), labels=LABELS)


def empty_npz(folder: Path) -> None:
    npz(folder / "data.npz", images=npy((4, 0, 8)), labels=LABELS)


def idx_header(folder: Path, *sizes: int, body: bytes = b"", zipped: bool = False) -> None:
    content = struct.pack(">I" + "I" * len(sizes), 0x803, *sizes) + body
    name = folder / "train-images-idx3-ubyte"
    if zipped:
        name.with_suffix(".gz").write_bytes(gzip.compress(content))
    else:
        name.write_bytes(content)
    labels = struct.pack(">II", 0x801, sizes[0]) + bytes(min(sizes[0], 100))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)


ARRAYS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "an npz of 1 TB": ("npz", huge_npz),
    "an npz of 1e12 labels": ("npz", long_npz),
    "an npz whose header lies": ("npz", lying_npz),
    "an npz of negative sizes": ("npz", negative_npz),
    "an npz of 15,000 dimensions": ("npz", wide_header_npz),
    "an npz of floats": ("npz", wrong_mode_npz),
    "an npz of 16 bits without a window": ("npz", deep_npz),
    "an npz of no pixels": ("npz", empty_npz),
    "idx of 1e28 bytes": ("idx", lambda folder: idx_header(folder, *(2**32 - 1,) * 3)),
    "idx of no images": ("idx", lambda folder: idx_header(folder, 0, 8, 8)),
    "idx of no width": ("idx", lambda folder: idx_header(folder, 4, 8, 0)),
    "idx cut short": ("idx", lambda folder: idx_header(folder, 4, 8, 8, body=bytes(255))),
    "gzipped idx of 64 GB": ("idx", lambda folder: idx_header(folder, 4, 2**17, 2**17, zipped=True)),
}


# Refused by what they say themselves, before a byte is asked for.
TOO_LARGE = ("an npz of 1 TB", "an npz of 1e12 labels")


def in_little_memory(work: Callable[[], object]) -> int:
    """The exit status of `work` in a child that gets little more memory than it has."""

    def limited() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        work()

    return in_child(limited)


def refusal(path: Path, load: Callable[[], object]) -> str:
    """The one line in which `load` must end; it has the file's name."""
    try:
        load()
    except DataError as error:
        message = str(error)
    else:
        raise AssertionError(f"{path} was taken")
    assert path.name in message, message
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_hostile_pictures_are_refused_by_name_in_little_memory(tmp_path: Path) -> None:
    files = {what: tmp_path / f"{number}.png" for number, what in enumerate(PICTURES)}
    for what, path in files.items():
        path.write_bytes(PICTURES[what]())

    def work() -> None:
        for what, path in files.items():
            print(what, file=sys.stderr, flush=True)
            refusal(path, lambda path=path: picture_pixels(path, Conversion(1, 8)))

    assert in_little_memory(work) == 0
    TRIED["attacks hostile images"] += len(files)


@pytest.mark.parametrize("what", ARRAYS)
def test_hostile_arrays_are_refused_by_name_in_little_memory(tmp_path: Path, what: str) -> None:
    source, write = ARRAYS[what]
    write(tmp_path)
    path = tmp_path / "data.npz" if source == "npz" else tmp_path

    def work() -> None:
        load = lambda: load_images(source=source, path=str(path), classes=2, channels=1, size=8, units=4)  # noqa: E731
        message = refusal(path, load)
        assert "unpacks to" in message or what not in TOO_LARGE, message

    assert in_little_memory(work) == 0
    TRIED["attacks hostile images"] += 1


def spoilt(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 200))] = (
            rng.randrange(256)
        )
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


def fuzz_pictures(folder: Path, times: int, seed: int) -> None:
    rng, path = random.Random(seed), folder / "fuzzed"
    whole = [saved(form) for form in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")]
    whole += [animated("GIF"), animated("TIFF"), saved("TIFF", compression="tiff_lzw")]
    for number in range(times):
        path.write_bytes(spoilt(whole[number % len(whole)], rng))
        TRIED["attacks fuzzed pictures"] += 1
        try:
            pixels = picture_pixels(path, Conversion(3, 8)).pixels
        except DataError as error:
            refused = str(error)
        else:
            refused = ""
            assert pixels.shape == (3, 8, 8)
        assert not refused or (str(path) in refused and "\n" not in refused)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_pictures_are_read_or_refused_by_name(tmp_path: Path) -> None:
    fuzz_pictures(tmp_path, 450, SEED)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_damaged_pictures_are_read_or_refused_by_name(tmp_path: Path) -> None:
    fuzz_pictures(tmp_path, 20_000, SEED + 1)
