"""Classes are meant by name: the order of a listing decides nothing that a declaration decides otherwise."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.names import natural
from curriculumdp.data.sources import load_images


@pytest.mark.parametrize(
    "order",
    [
        ["0", "1", "2", "9", "10", "11", "100"],
        ["a2b1", "a2b10", "a10b1"],
        ["", "01", "1", "a", "a0", "a00", "b"],
        ["img2.png", "img02a.png", "img10.png"],
        ["1" + "0" * 40, "1" + "0" * 39 + "1", "1" + "0" * 5000],
    ],
)
def test_numbers_in_names_count_as_numbers(order: list[str]) -> None:
    for seed in range(5):
        assert sorted(random.Random(seed).sample(order, len(order)), key=natural) == order


def folder_of(root: Path, names: list[str]) -> Path:
    """A folder per class whose pictures have the value of its name's place in `names`, 20 apart."""
    for value, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for picture in ("2.png", "10.png"):
            Image.new("L", (8, 8), 20 * value + len(picture)).save(root / name / picture)
    return root


def load(path: Path, source: str = "image_folder", **asked: object) -> ImageSet:
    settings = {"classes": 3, "channels": 1, "size": 8, "split": "test"} | asked
    return load_images(source=source, path=str(path), **settings)  # type: ignore[arg-type]


def values(images: ImageSet) -> list[int]:
    """The place of each image's class in `folder_of`."""
    return (images.images[:, 0, 0, 0] // 20).tolist()


def refused(work) -> str:
    with pytest.raises(DataError) as caught:
        work()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_class_folders_and_their_files_are_in_natural_order(tmp_path: Path) -> None:
    images = load(folder_of(tmp_path, ["1", "2", "10"]))
    assert images.class_names == ("1", "2", "10")
    assert values(images) == images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (images.images[:2, 0, 0, 0] % 20).tolist() == [len("2.png"), len("10.png")]


def test_declared_names_give_the_labels_whatever_the_order_of_the_folders(tmp_path: Path) -> None:
    images = load(folder_of(tmp_path, ["cat", "dog", "Ünit"]), class_names=["dog", "Ünit", "cat"])
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert values(images) == [1, 1, 2, 2, 0, 0]
    decomposed = load(
        folder_of(tmp_path / "x", ["cat", "dog", "U\u0308nit"]), class_names=["dog", "Ünit", "cat"]
    )
    assert decomposed.labels.tolist() == images.labels.tolist()


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "Bird"], ["cat", "dog", "bird", "cow"]])
def test_other_folders_than_declared_are_refused_with_both_lists(tmp_path: Path, names: list[str]) -> None:
    said = refused(lambda: load(folder_of(tmp_path, names), class_names=["bird", "cat", "dog"]))
    assert str(sorted(names, key=natural)) in said
    assert "['bird', 'cat', 'dog']" in said


def table(folder: Path, labels: list[str], head: str = "path,label") -> dict[str, object]:
    """The option for a table that gives the pictures of `folder_of` these labels, two by two."""
    files = [f"{place.name}/{name}" for place in sorted(folder.iterdir()) for name in ("2.png", "10.png")]
    text = "".join(f"{file},{label}\n" for file, label in zip(files, labels, strict=True))
    (folder.parent / "table.csv").write_text(f"{head}\n{text}", encoding="utf-8-sig")
    return {"csv": str(folder.parent / "table.csv")}


TABLES = {
    "numbers": (["0", "0", "2", "2", "1", "1"], None, [0, 0, 2, 2, 1, 1]),
    "numbers that names were given to": (["0", "0", "2", "2", "1", "1"], ["x", "y", "z"], [0, 0, 2, 2, 1, 1]),
    "names": (["c10", "c10", "c2", "c2", "c1", "c1"], None, [2, 2, 1, 1, 0, 0]),
    "declared names": (["c", "c", "a", "a", "b", "b"], ["b", "c", "a"], [1, 1, 2, 2, 0, 0]),
    "two spellings that are two names": (
        ["1", "1", "01", "01", "2", "2"],
        ["01", "1", "2"],
        [1, 1, 0, 0, 2, 2],
    ),
    "numbers that are names": (["3", "3", "1", "1", "2", "2"], ["3", "2", "1"], [0, 0, 2, 2, 1, 1]),
    "spaces around": ([" c", "c ", "a", "a", "b", "b"], None, [2, 2, 0, 0, 1, 1]),
}


@pytest.mark.parametrize("case", TABLES)
def test_labels_of_a_table_are_numbers_or_names(tmp_path: Path, case: str) -> None:
    labels, declared, expected = TABLES[case]
    folder = folder_of(tmp_path / "images", ["p", "q", "r"])
    assert load(folder, **table(folder, labels), class_names=declared).labels.tolist() == expected


BAD_TABLES = {
    "a number among names": (
        ["a", "a", "b", "b", "0", "0"],
        None,
        "line 2: label 'a' must be one of 0, 1, 2",
    ),
    "another spelling": (["a", "A", "b", "b", "c", "c"], None, "labels name 4 classes, ['A', 'a', 'b', 'c']"),
    "a name that is not declared": (
        ["a", "a", "b", "b", "c", "c"],
        ["a", "b", "C"],
        "line 6: label 'c' is not one",
    ),
    "a number beside declared numbers": (
        ["0", "0", "1", "1", "2", "2"],
        ["1", "2", "3"],
        "line 2: label '0'",
    ),
    "no label": (["a", "a", "b", "b", "", "c"], None, "line 6: the label is empty"),
    "floats": (
        ["0.0", "0.0", "1.0", "1.0", "2.0", "2.0"],
        None,
        "line 2: label '0.0' must be one of 0, 1, 2",
    ),
    "two spellings of a number": (
        ["1", "1", "01", "01", "2", "2"],
        None,
        "line 4: label '01' is the same number as '1'",
    ),
    "not a number": (["nan", "0", "1", "1", "2", "2"], None, "line 2: label 'nan'"),
    "unprintable": (["a", "a", "b\u200b", "b", "c", "c"], None, "without U+200B"),
    "long": (["a", "a", "b" * 101, "b", "c", "c"], None, "has more than 100 letters"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_labels_that_could_mean_another_class_are_refused(tmp_path: Path, case: str) -> None:
    labels, declared, words = BAD_TABLES[case]
    folder = folder_of(tmp_path / "images", ["p", "q", "r"])
    assert words in refused(lambda: load(folder, **table(folder, labels), class_names=declared))


def npz(path: Path, names: list[str] | None = None, labels: tuple[int, ...] = (0, 1, 2)) -> Path:
    arrays = {"images": np.zeros((len(labels), 8, 8), np.uint8), "labels": np.array(labels)}
    np.savez(path, **arrays | ({} if names is None else {"class_names": np.array(names)}))
    return path


def test_an_array_of_names_gives_the_numbers_of_an_npz_file_their_meaning(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", ["a", "b", "c"])
    assert load(path, "npz").class_names == ("a", "b", "c")
    assert load(path, "npz", class_names=["c", "a", "b"]).labels.tolist() == [1, 2, 0]
    assert "['a', 'b', 'c']" in refused(lambda: load(path, "npz", class_names=["a", "b", "d"]))
    assert load(npz(tmp_path / "b.npz"), "npz", class_names=["c", "a", "b"]).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [(0, 1, 3), (-1, 0, 1)])
def test_a_label_beside_the_names_of_an_npz_file_is_refused(tmp_path: Path, labels: tuple[int, ...]) -> None:
    path = npz(tmp_path / "a.npz", ["a", "b", "c"], labels)
    assert "labels range from" in refused(lambda: load(path, "npz", class_names=["c", "b", "a"]))


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", ["a", "a ", "c"])
    assert "two classes are named 'a'" in refused(lambda: load(path, "npz"))
    folder_of(tmp_path / "f", ["Ü", "U\u0308", "b"])
    assert "two classes are named 'Ü'" in refused(lambda: load(tmp_path / "f"))


@pytest.mark.parametrize("text", ["\ufeffann\nbob\neve\n", "ann\nbob\neve\n\n \n", "ann\r\nbob\r\neve"])
def test_a_roster_may_begin_with_a_mark_and_end_with_blank_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.npz"
    images = np.zeros((3, 8, 8), np.uint8)
    np.savez(path, images=images, labels=[0, 1, 2], units=np.array(["eve", "ann", "bob"]))
    (tmp_path / "roster").write_text(text, encoding="utf-8")
    asked = {"units": 3, "split": "train", "roster": str(tmp_path / "roster")}
    assert load(path, "npz", **asked).units.tolist() == [2, 0, 1]
