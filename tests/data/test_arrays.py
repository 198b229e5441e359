"""Digits, idx and npz: whole files give their images, damaged ones their name."""

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


def complaint(**asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(**asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def load(**asked: Any) -> ImageSet:
    return load_images(**({"classes": 3, "channels": 1, "size": 8, "units": 6} | asked))


# digits


def test_digits_hold_out_every_fifth_row() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    train = load(source="digits", classes=10, units=1437)
    test = load(source="digits", classes=10, split="test")
    assert (train.images.shape, train.unit_count) == ((1437, 1, 8, 8), 1437)
    assert (test.images.shape, test.unit_count) == ((360, 1, 8, 8), 360)
    assert np.array_equal(test.images[1, 0], np.rint(digits.images[5] * 255 / 16))
    assert np.array_equal(train.images[0, 0], np.rint(digits.images[1] * 255 / 16))
    assert train.labels[:4].tolist() == digits.target[1:5].tolist()
    assert train.images.max() == 255


def test_a_wrong_number_of_units_names_both_numbers_and_the_key() -> None:
    message = complaint(source="digits", classes=10, units=1438)
    for part in ("1437", "1438", "data.units"):
        assert part in message


# idx


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.tobytes()


@pytest.fixture(params=["plain", "gzip"])
def idx_folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[str, bytes], Path]]:
    """A folder with both splits, and how to write one of its files."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / (f"{name}.gz" if request.param == "gzip" else name)
        path.write_bytes(gzip.compress(content) if request.param == "gzip" else content)
        return path

    write("train-images-idx3-ubyte", idx(GREY))
    write("train-labels-idx1-ubyte", idx(LABELS))
    write("t10k-images-idx3-ubyte", idx(GREY[:2]))
    write("t10k-labels-idx1-ubyte", idx(LABELS[:2]))
    return tmp_path, write


Folder = tuple[Path, Callable[[str, bytes], Path]]


def test_idx_files_are_read_plain_and_gzipped(idx_folder: Folder) -> None:
    train = load(source="idx", path=str(idx_folder[0]))
    assert np.array_equal(train.images[:, 0], GREY)
    assert np.array_equal(train.labels, LABELS)
    assert train.images.flags.writeable
    assert len(load(source="idx", path=str(idx_folder[0]), split="test").labels) == 2


def test_grey_images_become_colour_where_three_channels_are_declared(idx_folder: Folder) -> None:
    train = load(source="idx", path=str(idx_folder[0]), channels=3)
    assert train.images.shape == (6, 3, 8, 8)
    assert np.array_equal(train.images[:, 2], GREY)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("train-images-idx3-ubyte", idx(GREY)[:-1], "truncated"),
        ("train-images-idx3-ubyte", idx(GREY) + b"x", "too long"),
        ("train-images-idx3-ubyte", idx(GREY)[:9], "not a 3-dimensional idx file"),
        ("train-images-idx3-ubyte", b"", "starts with nothing"),
        ("train-images-idx3-ubyte", idx(LABELS), "not a 3-dimensional idx file"),
        ("train-images-idx3-ubyte", idx(GREY[:5]), "has 5 images but its label file train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte", idx(GREY[:, :0]), "cannot hold"),
        ("train-labels-idx1-ubyte", idx(GREY), "not a 1-dimensional idx file"),
        ("train-labels-idx1-ubyte", idx(LABELS)[:-2], "truncated|cannot hold"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\xff\xff\xff\xff", "cannot hold"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\x06\xff\xff\xff\xff\xff\xff\xff\xff", "cannot hold"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\0\0\0\x06" * 3 + bytes(216), None),
    ],
)
def test_a_damaged_idx_file_is_named_and_asks_for_no_memory(
    idx_folder: Folder, name: str, content: bytes, part: str | None
) -> None:
    path = idx_folder[1](name, content)
    if part is None:  # other images of other sizes are no damage
        assert load(source="idx", path=str(idx_folder[0])).images.shape == (6, 1, 8, 8)
        return
    message = complaint(source="idx", path=str(idx_folder[0]))
    assert str(path) in message
    assert any(piece in message for piece in part.split("|"))


def test_a_truncated_or_foreign_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(idx(GREY))[:-20])
    assert str(packed) in complaint(source="idx", path=str(tmp_path))
    packed.write_bytes(b"not gzip at all")
    assert str(packed) in complaint(source="idx", path=str(tmp_path))
    damaged = bytearray(gzip.compress(idx(GREY)))
    damaged[60] ^= 0xFF
    packed.write_bytes(damaged)
    assert str(packed) in complaint(source="idx", path=str(tmp_path))


def test_a_missing_idx_file_says_where_it_should_be(tmp_path: Path) -> None:
    message = complaint(source="idx", path=str(tmp_path / "absent"))
    assert "train-images-idx3-ubyte" in message
    assert "data.path" in message


def test_labels_beyond_the_classes_are_refused(idx_folder: Folder) -> None:
    message = complaint(source="idx", path=str(idx_folder[0]), classes=2)
    assert "0 to 2" in message
    assert "data.classes = 2" in message


def test_a_class_without_images_is_no_error(idx_folder: Folder) -> None:
    assert load(source="idx", path=str(idx_folder[0]), classes=9).labels.max() == 2


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_is_whole_and_even() -> None:
    train = load(source="idx", path=str(FASHION_MNIST), classes=10, size=28, units=60_000)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert train.images.mean() == pytest.approx(72.94, abs=0.01)
    test = load(source="idx", path=str(FASHION_MNIST), classes=10, size=28, split="test")
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert "60000" in complaint(source="idx", path=str(FASHION_MNIST), classes=10, size=28, units=59_999)


# npz


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_images_are_read_in_each_layout(tmp_path: Path, compressed: bool) -> None:
    layouts = {"nhwc": COLOUR, "nchw": COLOUR.transpose(0, 3, 1, 2), "fortran": np.asfortranarray(COLOUR)}
    for name, images in layouts.items():
        path = tmp_path / f"{name}.npz"
        (np.savez_compressed if compressed else np.savez)(path, images=images, labels=LABELS)
        read = load(source="npz", path=str(path), channels=3)
        assert np.array_equal(read.images, COLOUR.transpose(0, 3, 1, 2))
    path = tmp_path / "grey.npz"
    assert np.array_equal(load(source="npz", path=npz(path, images=GREY, labels=LABELS)).images[:, 0], GREY)


def test_units_of_an_npz_may_own_several_images(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS, units=np.array([1, 0, 1, 2, 0, 1]))
    assert load(source="npz", path=path, units=3).counts.tolist() == [2, 3, 1]
    assert "data.units = 2" in complaint(source="npz", path=path, units=2)


def test_units_without_images_are_declared_by_a_roster_or_refused(tmp_path: Path) -> None:
    """A surplus would be certified as people who were protected, and the expected batch would be too large."""
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS, units=np.array([3, 0, 3, 0, 0, 3]))
    roster = tmp_path / "roster.txt"
    roster.write_text("0\n1\n2\n3\n4\n")
    assert load(source="npz", path=path, units=5, roster=str(roster)).counts.tolist() == [3, 0, 0, 3, 0]
    for declared in (4, 5, 6000):
        message = complaint(source="npz", path=path, units=declared)
        assert f"images of 2 units but data.units = {declared}" in message
        assert "data.roster" in message


def test_named_units_need_a_roster(tmp_path: Path) -> None:
    units = np.array(["ann", "bob", "ann", "eve", "eve", "eve"])
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS, units=units)
    assert "data.roster" in complaint(source="npz", path=path, units=4)
    roster = tmp_path / "roster.txt"
    roster.write_text("eve\nbob\nzoe\nann\n")
    images = load(source="npz", path=path, units=4, roster=str(roster))
    assert images.units.tolist() == [3, 1, 3, 0, 0, 0]


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ("eve\nbob\nann\n", "has 3 ids but data.units = 4"),
        ("eve\nbob\nann\nann\n", "line 4: repeats the id 'ann' of line 3"),
        ("eve\nbob\n\nann\n", "line 3: is empty"),
        ("eve\nbob\nzoe\nanne\n", "'ann' is not in data.roster"),
    ],
)
def test_a_roster_that_does_not_fit_is_refused(tmp_path: Path, lines: str, part: str) -> None:
    units = np.array(["ann", "bob", "ann", "eve", "eve", "eve"])
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS, units=units)
    roster = tmp_path / "roster.txt"
    roster.write_text(lines)
    assert part in complaint(source="npz", path=path, units=4, roster=str(roster))


def test_a_roster_without_named_units_or_absent_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS)
    assert "name no units" in complaint(source="npz", path=path, roster=str(tmp_path / "roster"))
    path = npz(tmp_path / "b.npz", images=GREY, labels=LABELS, units=LABELS)
    assert "cannot read" in complaint(source="npz", path=path, roster=str(tmp_path / "roster"))


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"images": GREY}, "add labels"),
        ({"labels": LABELS}, "add images"),
        ({"images": GREY, "labels": LABELS, "unit": LABELS}, "remove 'unit'"),
        ({"images": GREY, "labels": LABELS[:5]}, "labels has shape (5,)"),
        ({"images": GREY, "labels": LABELS, "units": LABELS[:5]}, "units has shape (5,)"),
        ({"images": GREY, "labels": LABELS.astype(float)}, "must be integers"),
        ({"images": GREY, "labels": LABELS, "units": LABELS.astype(float)}, "integers or strings"),
        ({"images": GREY, "labels": LABELS, "units": np.array([-1, 0, 0, 0, 0, 0])}, "data.roster"),
        ({"images": GREY, "labels": LABELS.astype(np.int64) - 1}, "range from -1"),
        ({"images": GREY.astype(np.float32), "labels": LABELS}, "data.window=[low, high]"),
        ({"images": GREY > 9, "labels": LABELS}, "are bool but must be uint8"),
        ({"images": GREY * 1j, "labels": LABELS}, "are complex128 but must be uint8"),
        ({"images": GREY.astype(np.uint16), "labels": LABELS}, "data.window=[low, high]"),
        ({"images": GREY[..., None, None], "labels": LABELS}, "no unique channel axis"),
        ({"images": COLOUR[:, :3], "labels": LABELS}, "no unique channel axis"),
        ({"images": GREY[:, :, 0], "labels": LABELS}, "no unique channel axis"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "contains no images"),
        ({"images": GREY[:, :0], "labels": LABELS}, "no pixels"),
        ({"images": np.array(5, dtype=np.uint8), "labels": LABELS}, "for 0 images"),
        ({"images": GREY.astype(object), "labels": LABELS}, "pickled objects"),
        ({"images": GREY, "labels": LABELS.astype(object)}, "pickled objects"),
    ],
)
def test_an_npz_that_is_not_understood_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], part: str
) -> None:
    path = npz(tmp_path / "a.npz", **arrays)
    message = complaint(source="npz", path=path)
    assert part in message
    assert path in message


def test_16_bit_images_are_cut_to_their_window(tmp_path: Path) -> None:
    values = np.full((1, 8, 8), 2000, dtype=np.uint16)
    values[0, 0, :4] = [0, 1000, 3000, 65535]
    path = npz(tmp_path / "a.npz", images=values, labels=LABELS[:1])
    read = load(source="npz", path=path, units=1, window=(1000, 3000))
    assert read.images[0, 0, 0, :5].tolist() == [0, 0, 255, 255, 128]


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<i8", "<f2", "<f4", ">f8"])
def test_deeper_numbers_of_every_kind_are_cut_to_their_window(tmp_path: Path, kind: str) -> None:
    path = npz(tmp_path / "a.npz", images=np.full((1, 8, 8), 20).astype(kind), labels=LABELS[:1])
    assert (load(source="npz", path=path, units=1, window=(0, 100)).images == 51).all()


def test_a_number_that_is_not_finite_is_named_by_its_image(tmp_path: Path) -> None:
    values = np.zeros((6, 8, 8), dtype=np.float32)
    values[3, 0, 0] = np.nan
    message = complaint(
        source="npz", path=npz(tmp_path / "a.npz", images=values, labels=LABELS), window=(0, 1)
    )
    assert "a.npz image 3: has values that are not finite" in message


@pytest.mark.parametrize(("images", "labels"), [(6, 5), (5, 6)])
def test_as_many_labels_as_images_or_both_counts_are_named(tmp_path: Path, images: int, labels: int) -> None:
    """Before data.units is compared, which would be blamed for it."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GREY[:images]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:labels]))
    message = complaint(source="idx", path=str(tmp_path))
    for part in (f"has {images} images", "train-labels-idx1-ubyte", f"has {labels} labels"):
        assert part in message


def test_a_window_for_8_bit_images_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS)
    assert "remove data.window" in complaint(source="npz", path=path, window=(0, 100))


def damaged_archives(tmp_path: Path) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, images=GREY, labels=LABELS)
    whole = buffer.getvalue()
    flipped = bytearray(whole)
    flipped[300] ^= 0xFF
    boasting = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (6, 10**6, 10**6)}
    )
    with zipfile.ZipFile(boasting, "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"short")
    return {
        "cut": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "empty": b"",
        "text": b"images,labels",
        "npy": pickle.dumps([1]),
        "boasting": boasting.getvalue(),
    }


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty", "text", "npy", "boasting"])
def test_a_damaged_npz_is_named_and_never_unpickled(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(damaged_archives(tmp_path)[kind])
    assert str(path) in complaint(source="npz", path=str(path))


def test_a_missing_npz_is_named(tmp_path: Path) -> None:
    assert "No such file" in complaint(source="npz", path=str(tmp_path / "absent.npz"))
