"""Picture files written byte by byte, so that they hold what Pillow itself does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, colour: int, *more: bytes) -> bytes:
    """A PNG of values [H, W, channels], uint8 or uint16, with more chunks between its header and its rows."""
    bits = 8 * values.itemsize
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(values.dtype.newbyteorder(">")))
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff(values: np.ndarray, photometric: int, *, tile: int = 0, **tags: int) -> bytes:
    """A little-endian TIFF of values [H, W, channels]; `tile`: side of its tiles; tags: t338=1 sets tag 338."""
    height, width, channels = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    fields = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: photometric, 277: channels}
    fields |= {339: kind} | {int(name[1:]): value for name, value in tags.items()}
    if tile:
        blocks = [
            values[top : top + tile, left : left + tile].tobytes()
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
        fields |= {322: tile, 323: tile}
        places, lengths = 324, 325
    else:
        blocks = [values.tobytes()]
        fields |= {278: height}
        places, lengths = 273, 279
    content = b"II*\0" + struct.pack("<I", 8 + sum(map(len, blocks))) + b"".join(blocks)
    starts = [8 + sum(map(len, blocks[:number])) for number in range(len(blocks))]
    lists = {number: [value] for number, value in fields.items()}
    lists |= {places: starts, lengths: [len(block) for block in blocks]}
    lists |= {number: lists[number] * channels for number in (258, 339)}
    after = len(content) + 2 + 12 * len(lists) + 4
    entries, extra = b"", b""
    for number, numbers in sorted(lists.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", number, 4, len(numbers))
        entries += packed if len(numbers) == 1 else struct.pack("<I", after + len(extra))
        extra += packed if len(numbers) > 1 else b""
    return content + struct.pack("<H", len(lists)) + entries + bytes(4) + extra


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
