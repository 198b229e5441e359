"""Who owns which image, whatever the order of the set."""

import numpy as np
import pytest
import torch

from curriculumdp.data.images import DataError, ImageSet


def image_set(units: list[int], unit_count: int) -> ImageSet:
    """Images whose every pixel is their row number."""
    rows = np.arange(len(units))
    images = np.broadcast_to(rows[:, None, None, None], (len(units), 1, 2, 2)).astype(np.uint8)
    return ImageSet(images, rows % 3, np.array(units, dtype=np.int64), unit_count)


def owned_by(images: ImageSet, unit: int) -> np.ndarray:
    return images.order[images.offsets[unit] : images.offsets[unit + 1]]


def test_offsets_and_order_give_each_unit_its_own_images_in_the_sets_order() -> None:
    images = image_set([2, 0, 2, 4, 0, 2], 6)
    assert images.counts.tolist() == [2, 0, 3, 0, 1, 0]
    owned = [owned_by(images, unit).tolist() for unit in range(6)]
    assert owned == [[1, 4], [], [0, 2, 5], [], [3], []]
    assert images.offsets.tolist() == [0, 2, 2, 5, 5, 6, 6]


def test_rows_of_units_follow_the_question_and_pass_over_empty_places() -> None:
    images = image_set([2, 0, 2, 4, 0, 2], 6)
    owners, rows = images.rows_of(torch.tensor([4, 1, 2, 0]))
    assert owners.tolist() == [0, 2, 2, 2, 3, 3]
    assert rows.tolist() == [3, 0, 2, 5, 1, 4]
    owners, rows = images.rows_of(torch.tensor([1, 5]))
    assert (len(owners), rows.dtype) == (0, np.int64)


def test_taking_a_unit_away_moves_nobody_else() -> None:
    images = image_set([2, 0, 2, 4, 0, 2], 6)
    without = images.without_unit(0)
    assert without.unit_count == 6
    for unit in range(6):
        before, after = images.images[owned_by(images, unit)], without.images[owned_by(without, unit)]
        assert np.array_equal(after, before[:0] if unit == 0 else before)


def test_a_unit_taken_away_and_put_back_owns_the_same_images() -> None:
    images = image_set([2, 0, 2, 4, 0, 2], 6)
    rows = owned_by(images, 2)
    back = images.without_unit(2).with_unit(2, images.images[rows], images.labels[rows])
    for unit in range(6):
        before, after = owned_by(images, unit), owned_by(back, unit)
        assert np.array_equal(images.images[before], back.images[after])
        assert np.array_equal(images.labels[before], back.labels[after])
    with pytest.raises(DataError, match="remove them first"):
        images.with_unit(2, images.images[:1], images.labels[:1])


def test_what_a_mac_covers_tells_sets_apart() -> None:
    def content(images: ImageSet) -> bytes:
        return b"".join(array.tobytes() for array in images.content_arrays().values())

    images = image_set([0, 1, 1], 3)
    assert content(images) == content(image_set([0, 1, 1], 3))
    assert content(images) != content(image_set([0, 1, 1], 4))
    assert content(images) != content(image_set([0, 0, 1], 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": np.zeros((2, 1, 4, 4), dtype=np.float32)}, "images must be uint8"),
        ({"images": np.zeros((2, 4, 4), dtype=np.uint8)}, r"\[N, C, H, W\]"),
        ({"labels": np.zeros(3, dtype=np.int64)}, "labels must be int64"),
        ({"labels": np.zeros(2, dtype=np.int32)}, "labels must be int64"),
        ({"labels": np.array([0, -1])}, "not be negative"),
        ({"units": np.array([0, 2])}, "units must be in 0..1"),
        ({"units": np.array([-1, 0])}, "units must be in 0..1"),
    ],
)
def test_arrays_that_do_not_hold_together_are_refused(fields: dict[str, np.ndarray], message: str) -> None:
    whole: dict[str, np.ndarray] = {
        "images": np.zeros((2, 1, 4, 4), dtype=np.uint8),
        "labels": np.zeros(2, dtype=np.int64),
        "units": np.array([0, 1]),
        **fields,
    }
    with pytest.raises(DataError, match=message):
        ImageSet(whole["images"], whole["labels"], whole["units"], 2)


def test_a_set_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        image_set([0], 1).unit_count = 2  # type: ignore[misc]
