"""Readers for array sources: scikit-learn's digits, MNIST's idx files, npz. Pickles are never loaded.

The size that a file's header declares is checked against the file's length before memory is allocated.
"""

import gzip
import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np

from curriculumdp.data.images import BadImage, DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.names import by_name
from curriculumdp.data.pixels import Conversion, Decoded, Unusable, array_picture, refuse_window, windowed

Read = TypeVar("Read")
IDX_PREFIX = {"train": "train", "test": "t10k"}
GZIP_RATIO = 1032  # deflate's maximum compression ratio
IDX_IMAGES, IDX_LABELS = 0x803, 0x801  # magic numbers: unsigned bytes in 3 dimensions and in 1
# What Python's gzip, zip and npy readers raise on damaged or encrypted files and on other formats.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, SyntaxError),
    *(zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)
NPZ_ARRAYS = {"images", "labels", "units", "class_names"}
# Every fifth row of scikit-learn's digits is held out, so that all writers are in both splits.
TEST_EVERY = 5


def list_digits(wanted: Wanted) -> Listing:
    """List scikit-learn's 1797 digits (8x8 pixels): 1437 for training, every fifth row (360) for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.arange(len(digits.target))
    rows = rows[(rows % TEST_EVERY == 0) == (wanted.split == "test")]
    images = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)[..., None]
    return Listing(
        "scikit-learn's digits",
        digits.target[rows].astype(np.int64),
        None,
        (),
        lambda: array_rows("scikit-learn's digits", images, wanted.how),
        wanted.class_names,
    )


def array_rows(origin: str, images: np.ndarray, how: Conversion) -> Callable[[int], Decoded]:
    """Return a function that decodes a row of images [N, H, W, 1 or 3]. Raises DataError if their depth is refused."""
    try:
        if images.dtype == np.uint8:
            refuse_window(how)
        elif images.dtype.kind not in "iuf":
            raise Unusable(f"images are {images.dtype} but must be uint8, or deeper numbers with data.window")
        else:
            windowed(images[:0], how.window)
    except Unusable as error:
        raise DataError(f"{origin}: {error}") from None

    def decoded(row: int) -> Decoded:
        try:
            return array_picture(images[row], how)
        except Unusable as error:
            raise BadImage(f"{origin} image {row}", str(error)) from None

    return decoded


def list_idx(wanted: Wanted) -> Listing:
    """List the images of a folder that holds MNIST's four idx files, gzipped or not."""
    folder = _required(wanted.path, "folder of the idx files")
    prefix = IDX_PREFIX[wanted.split]
    images = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
    labels = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    digits = _read_idx(labels, IDX_LABELS)
    count = _or_data_error(images, lambda: _idx_count(images))
    if count != len(digits):
        raise DataError(
            f"{images}: has {count} images but its label file {labels.name} has {len(digits)} labels: replace the "
            "wrong file"
        )
    return Listing(
        str(images),
        digits.astype(np.int64),
        None,
        (images, labels),
        lambda: array_rows(str(images), _read_idx(images, IDX_IMAGES)[..., None], wanted.how),
        wanted.class_names,
    )


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{folder / name}: no such file, with or without .gz: data.path must be the folder of the idx files"
    )


def _idx_opened(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _idx_count(path: Path) -> int:
    with _idx_opened(path) as file:
        return _idx_shape(path, file, IDX_IMAGES)[0]


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """Return the array in an idx file, uint8."""

    def read() -> np.ndarray:
        zipped = path.suffix == ".gz"
        with _idx_opened(path) as file:
            shape = _idx_shape(path, file, magic)
            if min(shape) < 1 or prod(shape) > path.stat().st_size * (GZIP_RATIO if zipped else 1):
                raise DataError(
                    f"{path}: its header declares shape {shape}, which the file cannot hold: replace the file"
                )
            require_memory(path, prod(shape))
            body = file.read(prod(shape) + 1)
        if len(body) != prod(shape):
            raise DataError(
                f"{path}: is truncated or too long for shape {shape}, declared in its header: replace the file"
            )
        return np.frombuffer(body, dtype=np.uint8).reshape(shape)

    return _or_data_error(path, read)


def _idx_shape(path: Path, file: io.BufferedIOBase, magic: int) -> tuple[int, ...]:
    dimensions = magic & 0xFF
    header = file.read(4 * (1 + dimensions))
    if len(header) < 4 * (1 + dimensions) or int.from_bytes(header[:4], "big") != magic:
        raise DataError(
            f"{path}: is not a {dimensions}-dimensional idx file: it starts with "
            f"{header[:4].hex() or 'nothing'}, not {magic:08x}"
        )
    return tuple(int(size) for size in np.frombuffer(header[4:], dtype=">u4"))


def list_npz(wanted: Wanted) -> Listing:
    """List an npz file of the arrays images, labels and, where a unit may own several images, units.

    An array class_names may name the classes: class_names[label]. Labels then go by name.
    """
    path = _required(wanted.path, "npz file")
    shapes = _or_data_error(path, lambda: _npz_shapes(path))
    missing = sorted({"images", "labels"} - shapes.keys())
    unknown = sorted(shapes.keys() - NPZ_ARRAYS)
    if "train_images" in shapes:
        raise DataError(f"{path}: is laid out as MedMNIST's files are: set data.source=medmnist")
    if missing or unknown:
        raise DataError(
            f"{path}: must contain the arrays images, labels and, if a unit owns several images, units: "
            + (f"add {missing[0]}" if missing else f"remove {unknown[0]!r}")
        )
    count = shapes["images"][0] if shapes["images"] else 0
    for name in shapes.keys() - {"images", "class_names"}:
        if shapes[name] != (count,):
            raise DataError(
                f"{path}: {name} has shape {shapes[name]} but must have shape ({count},) for {count} images"
            )
    labels = _npz_array(path, "labels")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype} but must be integers")
    units = _npz_array(path, "units") if "units" in shapes else None
    if units is not None and units.dtype.kind not in "iuU":
        raise DataError(f"{path}: units are {units.dtype} but must be integers or strings")
    labels, names = _named_labels(path, labels.astype(np.int64), wanted, "class_names" in shapes)
    return Listing(str(path), labels, units, (path,), lambda: _npz_rows(path, wanted), names)


def _named_labels(
    path: Path, labels: np.ndarray, wanted: Wanted, named: bool
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return (labels, names) in the order that is wanted."""
    if not named:
        return labels, wanted.class_names
    found = _npz_array(path, "class_names")
    if found.dtype.kind != "U" or found.ndim != 1:
        raise DataError(f"{path}: class_names must be an array of strings, one per class, in label order")
    return by_name(labels, found.tolist(), wanted.class_names, wanted.classes, str(path))


def list_medmnist(wanted: Wanted) -> Listing:
    """List one split of a MedMNIST file: an npz of train_images, train_labels [N, 1], val_…, test_…."""
    path = _required(wanted.path, "npz file of MedMNIST")
    shapes = _or_data_error(path, lambda: _npz_shapes(path))
    images, labels = f"{wanted.part}_images", f"{wanted.part}_labels"
    if not {images, labels} <= shapes.keys():
        parts = sorted(name.removesuffix("_images") for name in shapes if name.endswith("_images"))
        fix = (
            f"set data.split to one of {', '.join(parts)}"
            if parts
            else "source medmnist reads MedMNIST's files"
        )
        raise DataError(f"{path}: has no arrays {images} and {labels}: {fix}")
    count = shapes[images][0] if shapes[images] else 0
    if len(shapes[labels]) == 2 and shapes[labels][1] > 1:
        raise DataError(
            f"{path}: {labels} has shape {shapes[labels]}, several labels per image (multi-label), but a model is "
            "conditioned on one class per image: choose a set with one label per image"
        )
    if shapes[labels] not in ((count, 1), (count,)):
        raise DataError(
            f"{path}: {labels} has shape {shapes[labels]} but must be ({count}, 1) for {count} images"
        )
    values = _npz_array(path, labels)
    if values.dtype.kind not in "iu":
        raise DataError(f"{path}: {labels} are {values.dtype} but must be integers")
    return Listing(
        f"{path} ({wanted.part})",
        values.reshape(count).astype(np.int64),
        None,
        (path,),
        lambda: array_rows(str(path), _channels_last(path, _npz_array(path, images)), wanted.how),
        wanted.class_names,
    )


def _npz_rows(path: Path, wanted: Wanted) -> Callable[[int], Decoded]:
    return array_rows(str(path), _channels_last(path, _npz_array(path, "images")), wanted.how)


def _channels_last(path: Path, images: np.ndarray) -> np.ndarray:
    """Return images given as [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, H, W, C], C 1 or 3."""
    if 0 in images.shape:
        raise DataError(
            f"{path}: images have shape {images.shape}, hence no pixels: store images of at least 1x1 pixels"
        )
    if images.ndim == 3:
        return images[..., None]
    last, first = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (3, 1))
    if last == first:
        raise DataError(
            f"{path}: images have shape {images.shape}, with no unique channel axis of size 1 or 3: "
            "store [N, H, W], [N, H, W, C] or [N, C, H, W]"
        )
    return images if last else images.transpose(0, 2, 3, 1)


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return each array's shape from its header. Raises DataError unless it agrees with the array's length."""
    shapes: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(path) as archive:
        require_memory(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise DataError(
                        f"{path}: {member.filename} contains pickled objects, which are never loaded: store numbers"
                    )
                if member.file_size != file.tell() + prod(shape) * dtype.itemsize:
                    raise DataError(
                        f"{path}: {member.filename} does not have the length that its header declares"
                    )
            shapes[member.filename.removesuffix(".npy")] = shape
    return shapes


def _npz_array(path: Path, name: str) -> np.ndarray:
    def read() -> np.ndarray:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]

    return _or_data_error(path, read)


def require_memory(path: Path, size: int) -> None:
    """Raise DataError if `size` bytes exceed half of this machine's memory, since they are copied once."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory // 2:
        raise DataError(
            f"{path}: unpacks to {size / 2**30:.3g} GiB but this machine has {memory / 2**30:.3g} GiB of memory: "
            "scale the images down"
        )


def _required(path: Path | None, what: str) -> Path:
    if path is None:
        raise DataError(f"data.path is missing: set it to the {what}")
    return path


def _or_data_error(path: Path, read: Callable[[], Read]) -> Read:
    """Return `read()`, turning what it raises on a damaged or missing file into a DataError that names the file."""
    try:
        return read()
    except DataError:
        raise
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or "too large"
        raise DataError(
            f"{path}: cannot be read ({reason}): check that it is complete and the right file"
        ) from None
