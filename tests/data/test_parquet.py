"""Parquet files and data sets saved to disk: images from their bytes alone, labels and units by column."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images
from tests.support.made_pictures import png


def picture(value: int) -> bytes:
    return png(np.full((8, 8, 1), value, dtype=np.uint8), 0)


def stored(value: int) -> dict[str, Any]:
    return {"bytes": picture(value), "path": None}


COLUMNS: dict[str, list[Any]] = {"image": [stored(value) for value in range(3)], "label": [0, 1, 1]}


def table(names: list[str] | None = None, **columns: Any) -> Any:
    arrow = pytest.importorskip("pyarrow")
    made = arrow.table({name: values for name, values in (COLUMNS | columns).items() if values is not None})
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features if names else {}}}).encode()
    return made.replace_schema_metadata({b"huggingface": about})


def parquet(path: Path, **columns: Any) -> Path:
    pytest.importorskip("pyarrow.parquet").write_table(table(**columns), path)
    return path


def load(path: Path, **asked: Any) -> ImageSet:
    settings = {"classes": 2, "channels": 1, "size": 8, "units": 3} | asked
    return load_images(source="parquet", path=str(path), **settings)


def complaint(path: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(path, **asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    for name in ("image", "img"):
        columns = {"image": None, name: COLUMNS["image"], "unit": ["1", "0", "1"], "caption": ["a", "b", "c"]}
        said: list[str] = []
        images = load(parquet(tmp_path / "a.parquet", **columns), units=2, say=said.append)
        assert images.images[:, 0, 0, 0].tolist() == [0, 1, 2]
        assert (images.labels.tolist(), images.units.tolist()) == ([0, 1, 1], [1, 0, 1])
        assert said == [f"{tmp_path / 'a.parquet'}: not used: 'caption'"]


def test_a_column_that_may_be_the_owner_is_not_passed_over_and_a_row_number_may_be(tmp_path: Path) -> None:
    assert "'patient'" in complaint(parquet(tmp_path / "a.parquet", **COLUMNS, patient=["x", "y", "x"]))
    numbered = parquet(tmp_path / "b.parquet", **COLUMNS, __index_level_0__=[0, 1, 2])
    assert load(numbered).units.tolist() == [0, 1, 2]


def test_bytes_without_a_struct_are_images_too(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[picture(value) for value in (7, 8, 9)])
    assert load(path).images.max() == 9


def test_the_files_of_a_split_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in (1, 0):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", label=[number] * 3)
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert load(tmp_path, units=6).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(load(tmp_path, split="test", units=None).labels) == 3
    assert "train-" in complaint(tmp_path, part="validation")


def saved(folder: Path, **columns: Any) -> Path:
    """A data set as `datasets` saves it."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True, exist_ok=True)
    made = table(**columns)
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), made.schema) as stream:
        stream.write_table(made)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    return folder


def test_a_data_set_saved_to_disk_is_read(tmp_path: Path) -> None:
    assert load(saved(tmp_path / "one")).images[:, 0, 0, 0].tolist() == [0, 1, 2]
    for split in ("train", "test"):
        saved(tmp_path / "all" / split, label=[int(split == "test")] * 3)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert load(tmp_path / "all").labels.tolist() == [0, 0, 0]
    assert load(tmp_path / "all", split="test", units=None).labels.tolist() == [1, 1, 1]
    assert "splits ['train', 'test']" in complaint(tmp_path / "all", part="valid")


def test_a_real_data_set_of_the_library_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ape", "bee"])}
    )
    columns = datasets.table.InMemoryTable(table().cast(features.arrow_schema))
    made = datasets.Dataset(columns, datasets.DatasetInfo(features=features), fingerprint="0")
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "a.parquet"))
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        assert load(path).images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_the_names_of_the_classes_are_those_of_the_features(tmp_path: Path) -> None:
    from curriculumdp.data.listing import Wanted
    from curriculumdp.data.parquet import list_parquet
    from curriculumdp.data.pixels import Conversion

    path = parquet(tmp_path / "a.parquet", names=["ape", "bee"])
    wanted = Wanted(path, None, None, 3, 2, Conversion(1, 8), "train")
    assert list_parquet(wanted).class_names == ("ape", "bee")


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"label": None}, "rename the ones"),
        ({"image": None}, "rename the ones"),
        ({"img": COLUMNS["image"]}, "rename the ones"),
        ({"image": ["/etc/passwd"] * 3}, "must hold the bytes"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * 3}, "must hold the bytes|perhaps only a path"),
        ({"image": [stored(1), {"bytes": None, "path": "/etc/passwd"}, stored(1)]}, "row 1: holds no image"),
        ({"image": [stored(1), None, stored(1)]}, "row 1: holds no image"),
        ({"image": [stored(1), {"bytes": b"junk", "path": ""}, stored(1)]}, "row 1: cannot be read"),
        ({"label": [0, None, 1]}, "row 1: the label is 'None'"),
        ({"label": [0, 5, 1]}, "data.classes = 2"),
        ({"label": [0.0, 1.0, 1.0]}, "row 0: the label is '0.0'"),
        ({"label": [[0], [1], [1]]}, "row 0: the label is '[0]'"),
        ({"unit": ["a", None, "b"]}, "row 1: the unit is 'None'"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(
    tmp_path: Path, columns: dict[str, Any], part: str
) -> None:
    message = complaint(parquet(tmp_path / "a.parquet", **columns))
    assert str(tmp_path / "a.parquet") in message
    assert any(piece in message for piece in part.split("|"))


@pytest.mark.parametrize("name", ["../out.arrow", "/etc/passwd", 3, None])
def test_a_list_of_files_cannot_lead_out_of_its_folder(tmp_path: Path, name: object) -> None:
    folder = saved(tmp_path / "one")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "state.json" in complaint(folder)


@pytest.mark.parametrize("split", ["..", "../one", "/etc", "", "."])
def test_a_split_cannot_lead_out_of_its_folder(tmp_path: Path, split: str) -> None:
    saved(tmp_path / "one")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "dataset_dict.json").write_text(
        json.dumps({"splits": ["..", "../one", "/etc", "", "."]})
    )
    assert str(tmp_path / "all") in complaint(tmp_path / "all", part=split)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"junk" * 100, "cut"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, content: bytes | str) -> None:
    whole = (
        parquet(tmp_path / "a.parquet")
        if suffix == ".parquet"
        else saved(tmp_path) / "data-00000-of-00001.arrow"
    )
    path = tmp_path / f"b{suffix}"
    path.write_bytes(whole.read_bytes()[:-200] if isinstance(content, str) else content)
    assert str(path) in complaint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert "absent: no such file" in complaint(tmp_path / "absent")
    assert "data.split" in complaint(tmp_path)


def test_without_pyarrow_the_fix_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pip install 'curriculumdp[parquet]'" in complaint(tmp_path)
