"""Published layouts, in miniature: the right images and labels, and one line for what is not as published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data.images import DataError
from curriculumdp.data.published import LAYOUTS, prepare
from curriculumdp.data.sources import load_images


def picture(path: Path, value: int, size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, 0)).save(path, quality=95)


def camelyon17(folder: Path) -> Path:
    """Seven patches: hospital 1 is WILDS's validation, hospital 2 its test, split 1 validation within a hospital."""
    rows = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    places = [
        (4, 3, 0, 0),
        (20, 0, 1, 0),
        (21, 0, 0, 1),
        (40, 1, 1, 0),
        (60, 2, 1, 1),
        (61, 2, 0, 0),
        (80, 4, 1, 0),
    ]
    for number, (patient, center, tumor, split) in enumerate(places):
        slide = f"patient_{patient:03d}_node_1"
        rows.append(f"{number},{patient:03d},1,{number},7,{tumor},{number},{center},{split}")
        picture(folder / "patches" / slide / f"patch_{slide}_x_{number}_y_7.png", 10 * number)
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def celeba(folder: Path) -> Path:
    """Six faces; partition 0 trains, 1 validates, 2 tests."""
    faces = [(0, 1), (1, -1), (2, 1), (0, -1), (2, -1), (1, 1)]
    attributes, partition = ["6", "5_o_Clock_Shadow Male Young "], []
    for number, (part, male) in enumerate(faces, start=1):
        picture(folder / "img_align_celeba" / f"{number:06d}.jpg", 30 * number, (178, 218))
        attributes.append(f"{number:06d}.jpg -1 {male:2d}  1")
        partition.append(f"{number:06d}.jpg {part}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


def pcam(folder: Path, **change: Any) -> Path:
    h5py = pytest.importorskip("h5py")
    folder.mkdir(exist_ok=True)
    arrays = {
        "x": np.arange(3, dtype=np.uint8)[:, None, None, None] * np.full((3, 12, 12, 3), 50, dtype=np.uint8),
        "y": np.array([0, 1, 1], dtype=np.uint8).reshape(3, 1, 1, 1),
    } | change
    for name, array in arrays.items():
        with h5py.File(folder / f"camelyonpatch_level_2_split_train_{name}.h5", "w") as file:
            file[name] = array
    return folder


def made(name: str, folder: Path, **asked: Any) -> tuple[list[int], list[int]]:
    """The images' red at their middle, in tens, and their labels."""
    out = folder.parent / "made.npz"
    line = prepare(name, folder, out, asked.get("split", "train"), 8)
    with np.load(out) as arrays:
        count = len(arrays["labels"])
    assert line == f"{out}: {count} images of 8x8 pixels; set data.units={count}"
    images = load_images(source="npz", path=str(out), classes=2, channels=3, size=8, units=count)
    return np.rint(images.images[:, 0, 4, 4] / 10).astype(int).tolist(), images.labels.tolist()


def complaint(name: str, folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        made(name, folder)
    assert "\n" not in str(raised.value)
    assert [path.name for path in folder.parent.iterdir() if "made" in path.name] == []
    return str(raised.value)


def test_camelyon17_is_divided_by_hospital_as_in_wilds(tmp_path: Path) -> None:
    folder = camelyon17(tmp_path / "camelyon17_v1.0")
    assert made("camelyon17", folder) == ([0, 1, 6], [0, 1, 1])
    assert made("camelyon17", folder, split="test") == ([4, 5], [1, 0])


def test_celeba_is_labelled_by_gender_and_trains_with_its_validation_images(tmp_path: Path) -> None:
    folder = celeba(tmp_path / "celeba")
    assert made("celeba", folder) == ([3, 6, 12, 18], [1, 0, 0, 1])
    assert made("celeba", folder, split="test") == ([9, 15], [1, 0])


def test_patchcamelyon_is_read_from_its_h5_files(tmp_path: Path) -> None:
    assert made("pcam", pcam(tmp_path / "pcam")) == ([0, 5, 10], [0, 1, 1])


@pytest.mark.parametrize(
    ("name", "file", "text", "part"),
    [
        ("camelyon17", "metadata.csv", "", "lists no images"),
        ("camelyon17", "metadata.csv", "patient,node\n1,2\n", "line 2: is not a row of Camelyon17's"),
        ("camelyon17", "metadata.csv", None, "metadata.csv: cannot be read"),
        (
            "camelyon17",
            "metadata.csv",
            "patient,node,x_coord,y_coord,tumor,center,split\n1,2,3,4,0,0,0\n",
            "no such file: patches/patient_001_node_2/patch_patient_001_node_2_x_3_y_4.png",
        ),
        (
            "camelyon17",
            "metadata.csv",
            "patient,node,x_coord,y_coord,tumor,center,split\n1,2,3,4,5,0,0\n",
            "the label is 5",
        ),
        ("celeba", "list_attr_celeba.txt", None, "list_attr_celeba.txt: cannot be read"),
        ("celeba", "list_attr_celeba.txt", "1\nYoung\n000001.jpg 1\n", "no line of attributes with Male"),
        (
            "celeba",
            "list_attr_celeba.txt",
            "1\nMale Young\n000001.jpg 1\n",
            "line 3: must have an image and 2",
        ),
        ("celeba", "list_attr_celeba.txt", "1\nMale\n000001.jpg 3\n", "line 3: must have an image and 1"),
        ("celeba", "list_attr_celeba.txt", "1\nMale\n000009.jpg 1\n", "not in list_eval_partition.txt"),
        ("celeba", "list_eval_partition.txt", "000001.jpg\n", "line 1: must have 2 columns"),
        ("celeba", "list_eval_partition.txt", None, "list_eval_partition.txt: cannot be read"),
    ],
)
def test_what_is_not_as_published_is_named(
    tmp_path: Path, name: str, file: str, text: str | None, part: str
) -> None:
    folder = {"camelyon17": camelyon17, "celeba": celeba}[name](tmp_path / "set")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    assert part in complaint(name, folder)


def test_a_list_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = celeba(tmp_path / "celeba")
    picture(tmp_path / "secret.jpg", 1)
    (folder / "list_eval_partition.txt").write_text("../../secret.jpg 0\n")
    (folder / "list_attr_celeba.txt").write_text("1\nMale\n../../secret.jpg 1\n")
    assert "is outside" in complaint("celeba", folder)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"x": np.zeros((3, 12, 12, 3))}, "must be an array of uint8"),
        ({"x": np.zeros((3, 12, 12, 1), dtype=np.uint8)}, "has shape"),
        ({"y": np.zeros((2, 1, 1, 1), dtype=np.uint8)}, "has shape"),
        ({"y": np.full((3, 1, 1, 1), 7, dtype=np.uint8)}, "the label is 7"),
    ],
)
def test_h5_files_that_are_not_as_published_are_named(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    assert part in complaint("pcam", pcam(tmp_path / "pcam", **change))


def test_a_damaged_h5_file_is_named(tmp_path: Path) -> None:
    folder = pcam(tmp_path / "pcam")
    (folder / "camelyonpatch_level_2_split_train_y.h5").write_bytes(b"junk")
    assert "train_y.h5: cannot be read" in complaint("pcam", folder)


def test_an_h5_file_that_points_to_another_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = pcam(tmp_path / "pcam")
    other = folder / "camelyonpatch_level_2_split_train_x.h5"
    other.rename(tmp_path / "secret.h5")
    with h5py.File(other, "w") as file:
        file["x"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    assert "in the file itself" in complaint("pcam", folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such folder"):
        prepare(name, tmp_path / "absent", tmp_path / "made.npz", "train", 8)


def test_an_interrupted_command_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        prepare("celeba", celeba(tmp_path / "celeba"), tmp_path / "made.npz", "train", 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["celeba"]
