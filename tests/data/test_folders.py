"""A folder of pictures: labels and owners as written, no way out of the folder, nothing passed over."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path


def load(folder: Path, **asked: Any) -> ImageSet:
    settings = {"classes": 2, "channels": 1, "size": 8, "units": 3} | asked
    return load_images(source="image_folder", path=str(folder), **settings)


def complaint(folder: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, **asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for value, name in enumerate(["cats/b.png", "cats/a.png", "dogs/c.png"]):
        picture(root / name, value)
    return root


def table(folder: Path, text: str) -> str:
    path = folder.parent / "table.csv"
    path.write_text(text)
    return str(path)


def test_classes_are_the_sub_folders_in_the_order_of_their_names(folder: Path) -> None:
    picture(folder / ".hidden.png", 9)
    images = load(folder)
    assert images.images[:, 0, 0, 0].tolist() == [1, 0, 2]
    assert images.labels.tolist() == [0, 0, 1]
    assert images.units.tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", [None, "path,label\ncats/a.png,0\ncats/b.png,0\ndogs/c.png,1\n"])
def test_a_unit_that_is_more_than_an_image_needs_images_that_name_theirs(
    folder: Path, text: str | None
) -> None:
    """Without them each image would be protected alone, under a certificate that speaks of patients."""
    asked = {"unit": "all images of one patient"} | ({"csv": table(folder, text)} if text else {})
    message = complaint(folder, **asked)
    assert "all images of one patient" in message
    assert "name no units" in message
    named = table(folder, "path,label,unit\ncats/a.png,0,0\ncats/b.png,0,0\ndogs/c.png,1,1\n")
    assert load(folder, unit="all images of one patient", csv=named, units=2).counts.tolist() == [2, 1]


def test_an_empty_sub_folder_is_a_class_without_images(folder: Path) -> None:
    (folder / "bees").mkdir()
    assert load(folder, classes=3).labels.tolist() == [1, 1, 2]
    assert "has 3 sub-folders but data.classes = 2" in complaint(folder)


def test_what_is_no_image_is_named_rather_than_passed_over(folder: Path) -> None:
    (folder / "cats" / "notes.txt").write_text("?")
    assert "notes.txt" in complaint(folder)


@pytest.mark.parametrize("name", ["contact-sheet.png", "lost.JPG"])
def test_an_image_beside_the_class_folders_is_named_rather_than_passed_over(folder: Path, name: str) -> None:
    (folder / "README.txt").write_text("?")
    (folder / "LICENSE").write_text("?")
    load(folder)
    picture(folder / "some.png", 7).rename(folder / name)
    assert f"{name}: lies beside the classes' folders" in complaint(folder)


def test_a_nested_folder_is_named(folder: Path) -> None:
    picture(folder / "cats" / "more.png" / "d.png", 4)
    assert "more.png: is not an image" in complaint(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "cats" / "d.png").symlink_to(picture(tmp_path / "outside.png", 5))
    assert "is outside the folder" in complaint(folder, units=4)


def test_a_link_to_another_image_of_the_folder_counts_it_twice_and_is_refused(folder: Path) -> None:
    (folder / "cats" / "d.png").symlink_to(folder / "cats" / "a.png")
    assert "listed twice" in complaint(folder, units=4)


def test_a_table_gives_labels_and_owners(folder: Path) -> None:
    text = "\ufeffpath,label,unit\ncats/a.png,1,1\ndogs/c.png,0,0\ncats/b.png,1,1\n"
    images = load(folder, csv=table(folder, text), units=2)
    assert images.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert images.labels.tolist() == [1, 0, 1]
    assert images.units.tolist() == [1, 0, 1]


def test_named_owners_are_found_in_the_roster(folder: Path) -> None:
    text = "path,label,unit\ncats/a.png,1,p-07\ndogs/c.png,0,p-01\n"
    roster = folder.parent / "roster.txt"
    roster.write_text("p-01\np-03\np-07\n")
    assert load(folder, csv=table(folder, text), roster=str(roster)).units.tolist() == [2, 0]
    assert "data.roster" in complaint(folder, csv=table(folder, text))


def test_without_owners_each_row_is_a_unit(folder: Path) -> None:
    csv = table(folder, "path,label\ncats/a.png,1\ndogs/c.png,0\n")
    assert load(folder, csv=csv, units=2).units.tolist() == [0, 1]
    assert "has 2 images but data.units = 3" in complaint(folder, csv=csv)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("path,label,units\ncats/a.png,1,4\n", "['path', 'label', 'units']"),
        ("path,label,label\ncats/a.png,1,1\n", "they must be path,label"),
        ("", "they must be path,label"),
        ("path;label;unit\ncats/a.png;1;0\n", "separated by ';': save it with commas"),
        ("path\tlabel\ncats/a.png\t1\n", "separated by '\\t': save it with commas"),
        ("path,label\ncats/a.png\n", "line 2: must have 2 fields"),
        ("path,label\ncats/a.png,1,2\n", "line 2: must have 2 fields"),
        ("path,label\ncats/a.png,1\ncats/b.png,one\n", "line 3: label 'one'"),
        ("path,label\ncats/a.png,-1\n", "line 2: label '-1'"),
        (f"path,label\ncats/a.png,{10**19}\n", "line 2: label '10000"),
        (f"path,label\ncats/a.png,{'9' * 5000}\n", "line 2: label '99999"),
        ("path,label\ncats/a.png,2\n", "data.classes = 2"),
        ("path,label,unit\ncats/a.png,1,\n", "line 2: the unit is empty"),
        ("path,label,unit\ncats/a.png,1,3\n", "data.units = 3"),
        ("path,label,unit\ncats/a.png,1,1e1\n", "data.roster"),
        ("path,label\ncats/a.png,1\ncats/a.png,0\n", "line 3: a.png is listed twice"),
        ("path,label\ncats/a.png,1\ncats/./a.png,0\n", "line 3: a.png is listed twice"),
        ("path,label\ncats/z.png,1\n", "line 2: no such file"),
        ("path,label\ncats,1\n", "line 2: no such file"),
        ("path,label\n,1\n", "line 2: no such file"),
        ("path,label\n../outside.png,1\n", "line 2: is outside"),
        ("path,label\ncats/../cats/a.png,1\n", "line 2: is outside"),
        ("path,label\n/etc/hostname,1\n", "line 2: is outside"),
        ("path,label\nlink.png,1\n", "line 2: is outside"),
        ("path,label\nlink/outside.png,1\n", "line 2: is outside"),
        ("path,label\nloop/a.png,1\n", "line 2"),
        ("path,label\n" + "a" * 5000 + ".png,1\n", "line 2: is not a usable path"),
        ("path,label\na\0.png,1\n", "line"),
        ('path,label\n"cats/a.png,1\n', "cannot be read as a CSV table"),
        ("path,label\n" + "a" * 200_000 + ",1\n", "cannot be read as a CSV table"),
        ("path,label\n", "contains no images"),
    ],
)
def test_a_bad_row_is_named_by_its_line(folder: Path, tmp_path: Path, text: str, part: str) -> None:
    picture(tmp_path / "outside.png", 5)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    assert part in complaint(folder, csv=table(folder, text))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_a_table_in_another_encoding_is_refused_with_the_one_to_save_it_in(
    folder: Path, tmp_path: Path, encoding: str
) -> None:
    csv = tmp_path / "table.csv"
    csv.write_text("path,label\ncats/a.png,ärztlich\n", encoding=encoding)
    assert "save it as UTF-8" in complaint(folder, csv=str(csv))
    (roster := tmp_path / "roster.txt").write_text("p-1\nmüller\n", encoding=encoding)
    owned = table(folder, "path,label,unit\ncats/a.png,0,p-1\n")
    assert "save it as UTF-8" in complaint(folder, csv=owned, roster=str(roster), units=2)
    (folder / "metadata.jsonl").write_text('{"file_name": "cats/ä.png", "label": 0}\n', encoding=encoding)
    assert "save it as UTF-8" in complaint(folder)


def test_a_row_may_name_an_image_of_the_folder_by_its_absolute_path(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    text = f"path,label\n{folder}/cats/a.png,1\n{tmp_path}/alias/cats/b.png,0\n"
    assert load(folder, csv=table(folder, text), units=2).labels.tolist() == [1, 0]
    outside = picture(tmp_path / "images-more" / "a.png", 5)
    assert "is outside" in complaint(folder, csv=table(folder, f"path,label\n{outside},1\n"))
    for path in (f"{folder}/../images/cats/a.png", f"{folder}/cats/absent.png"):
        assert "line 2" in complaint(folder, csv=table(folder, f"path,label\n{path},1\n"))


def test_columns_beside_the_needed_ones_are_named_and_not_used(folder: Path) -> None:
    said: list[str] = []
    text = ",path,label,unit,age\n0,cats/a.png,1,1,50\n1,dogs/c.png,0,0,60\n"
    assert load(folder, csv=table(folder, text), units=2, say=said.append).units.tolist() == [1, 0]
    assert len(said) == 1
    assert "'', 'age'" in said[0]
    index = table(folder, ",path,label\n0,cats/a.png,1\n")
    assert load(folder, csv=index, units=1).labels.tolist() == [1]


@pytest.mark.parametrize("owner", ["units", "patient", "Unit", "age"])
def test_a_column_that_may_be_the_owner_under_another_name_is_not_passed_over(
    folder: Path, owner: str
) -> None:
    """Without its owners each image would be protected alone."""
    message = complaint(folder, csv=table(folder, f"path,label,{owner}\ncats/a.png,1,4\ndogs/c.png,1,4\n"))
    assert owner in message
    assert "unit" in message


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    assert "data.path must be the folder" in complaint(tmp_path / "absent")
    assert "absent.csv" in complaint(folder, csv=str(tmp_path / "absent.csv"))
    (tmp_path / "latin.csv").write_bytes(b"path,label\n\xe9.png,1\n")
    assert "cannot be read as a CSV table" in complaint(folder, csv=str(tmp_path / "latin.csv"))


def test_a_test_set_needs_no_declared_units(folder: Path) -> None:
    images = load(folder, units=None, split="test")
    assert (images.unit_count, images.counts.tolist()) == (3, [1, 1, 1])
    assert "data.units is missing" in complaint(folder, units=None)
