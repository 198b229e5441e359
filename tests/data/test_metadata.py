"""A folder with metadata.jsonl: labels and units as written, no way out of the folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.metadata import metadata_rows
from curriculumdp.data.sources import load_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for value, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def write(folder: Path, *rows: object) -> None:
    (folder / "metadata.jsonl").write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows)
    )


def row(name: str, label: object, **more: object) -> dict[str, object]:
    return {"file_name": name, "label": label, **more}


def load(folder: Path, **asked: Any) -> ImageSet:
    settings = {"classes": 2, "channels": 1, "size": 8, "units": 3} | asked
    return load_images(source="image_folder", path=str(folder), **settings)


def complaint(folder: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, **asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_labels_and_units_are_read(folder: Path) -> None:
    said: list[str] = []
    write(
        folder,
        row("sub/c.png", 1, unit=0),
        "",
        row("a.png", 0, unit=1, caption="a cat"),
        row("b.png", 0, unit=1),
    )
    images = load(folder, units=2, say=said.append)
    assert images.images[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert (images.labels.tolist(), images.units.tolist()) == ([1, 0, 0], [0, 1, 1])
    assert said == [f"{folder / 'metadata.jsonl'}: not used: 'caption'"]


def test_names_of_classes_are_returned_in_the_order_of_their_numbers(folder: Path) -> None:
    write(folder, row("a.png", "wolf"), row("b.png", "ape"))
    assert load(folder, units=2).labels.tolist() == [1, 0]
    records = metadata_rows(folder / "metadata.jsonl")[1]
    assert records.labels("there", 2, None)[1] == ("ape", "wolf")


@pytest.mark.parametrize("owner", ["units", "patient", "Unit", "age"])
def test_a_key_that_may_be_the_owner_under_another_name_is_not_passed_over(folder: Path, owner: str) -> None:
    """Without its owners each image would be protected alone."""
    write(folder, row("a.png", 0, **{owner: 4}), row("b.png", 1))
    message = complaint(folder, units=2)
    assert repr(owner) in message
    assert "to unit" in message


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        (["{"], "line 1: is not JSON"),
        (["[" * 100_000], "line 1: is not JSON"),
        (["[]"], "line 1: must be an object"),
        ([{"label": 1}], "line 1: must be an object"),
        ([{"file_name": 3, "label": 1}], "line 1: must be an object"),
        ([{"file_name": "a.png"}], "line 1: the label is 'None'"),
        ([row("a.png", 0), "", row("b.png", [1])], "line 3: the label is"),
        ([row("a.png", 5)], "data.classes = 2"),
        ([row("a.png", 0, unit=0), row("b.png", 0)], "name the owner of every image"),
        ([row("../a.png", 0)], "is outside"),
        ([row("/etc/passwd", 0)], "is outside"),
        ([row("out.png", 0)], "is outside"),
        ([row("absent.png", 0)], "no such file"),
        ([row("a\0.png", 0)], "is not a usable path"),
        ([row("a" * 5000, 0)], "is not a usable path"),
        ([row("a.png", 0), row("./a.png", 1)], "listed twice"),
        ([""], "contains no images"),
    ],
)
def test_a_bad_line_is_named(folder: Path, tmp_path: Path, rows: list[object], part: str) -> None:
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    write(folder, *rows)
    assert part in complaint(folder, units=1)


def test_text_that_is_not_utf_8_is_named(folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    assert "metadata.jsonl: cannot be read" in complaint(folder)
