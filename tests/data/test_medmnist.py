"""MedMNIST's own files: one split, one label per image; several labels per image are refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 28, 28, 3), dtype=np.uint8)
LABELS = np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8)


def made(folder: Path, images: np.ndarray = GREY, labels: np.ndarray = LABELS, **more: np.ndarray) -> Path:
    arrays = {
        "train_images": images,
        "train_labels": labels,
        "val_images": images[:2],
        "val_labels": labels[:2],
        "test_images": images[:3],
        "test_labels": labels[:3],
    } | more
    np.savez_compressed(
        folder / "medmnist.npz", **{name: array for name, array in arrays.items() if array is not None}
    )
    return folder / "medmnist.npz"


def load(path: Path, **asked: Any) -> ImageSet:
    settings = {"classes": 3, "channels": 1, "size": 28, "units": 6} | asked
    return load_images(source="medmnist", path=str(path), **settings)


def complaint(path: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(path, **asked)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_grey_and_colour_are_read_as_they_are(tmp_path: Path) -> None:
    grey = load(made(tmp_path))
    assert np.array_equal(grey.images[:, 0], GREY)
    assert grey.labels.tolist() == [0, 1, 2, 0, 1, 2]
    colour = load(made(tmp_path, COLOUR), channels=3)
    assert np.array_equal(colour.images, COLOUR.transpose(0, 3, 1, 2))


def test_the_source_npz_names_the_one_that_reads_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source=medmnist"):
        load_images(source="npz", path=str(made(tmp_path)), classes=3, channels=1, size=28, units=6)


@pytest.mark.parametrize(("part", "count"), [("train", 6), ("val", 2), ("test", 3)])
def test_the_split_that_is_asked_for_is_read(tmp_path: Path, part: str, count: int) -> None:
    assert len(load(made(tmp_path), part=part, units=count).labels) == count


def test_an_evaluation_reads_the_test_split(tmp_path: Path) -> None:
    assert len(load(made(tmp_path), split="test", units=None).labels) == 3


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    message = complaint(made(tmp_path), part="valid")
    assert "valid_images" in message
    assert "data.split to one of test, train, val" in message


def test_a_file_of_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS[:, 0])
    assert "train_images" in complaint(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (np.zeros((6, 14), dtype=np.uint8), "(6, 14), several labels per image (multi-label)"),
        (LABELS[:5], "for 6 images"),
        (LABELS.astype(np.float32), "must be integers"),
        (LABELS + 1, "data.classes = 3"),
        (np.zeros((6, 1, 1), dtype=np.uint8), "must be (6, 1)"),
        (np.array(["a"] * 6)[:, None], "must be integers"),
    ],
)
def test_labels_that_are_not_one_class_per_image_are_refused(
    tmp_path: Path, labels: np.ndarray, part: str
) -> None:
    assert part in complaint(made(tmp_path, labels=labels))


def test_volumes_are_refused(tmp_path: Path) -> None:
    assert "no unique channel axis" in complaint(made(tmp_path, np.zeros((6, 28, 28, 28), dtype=np.uint8)))


def test_an_object_array_is_never_unpickled(tmp_path: Path) -> None:
    assert "pickled" in complaint(made(tmp_path, more=np.array([{}], dtype=object)))
