"""WebDataset's tar files: read in place, keys and labels as written, nothing hostile taken or unpacked."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images
from tests.support.made_pictures import png


def picture(value: int) -> bytes:
    return png(np.full((8, 8, 1), value, dtype=np.uint8), 0)


def tar(
    path: Path, *members: tuple[str, bytes], change: dict[str, Any] | None = None, mode: str = "w"
) -> Path:
    """A tar of members; `change` sets fields of the last one's header."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for number, (name, content) in enumerate(members, start=1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if number == len(members):
                for field, value in (change or {}).items():
                    setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, value: int, label: object, **record: object) -> list[tuple[str, bytes]]:
    if record:
        return [
            (f"{key}.png", picture(value)),
            (f"{key}.json", json.dumps({"label": label, **record}).encode()),
        ]
    return [(f"{key}.cls", str(label).encode()), (f"{key}.png", picture(value))]


def load(path: Path, **asked: Any) -> ImageSet:
    settings = {"classes": 2, "channels": 1, "size": 8, "units": 3} | asked
    return load_images(source="tar", path=str(path), **settings)


def complaint(path: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(path, **asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


THREE = [*sample("a", 10, 0), *sample("d/b", 20, 1), *sample("e", 30, 1)]


def test_images_and_labels_are_read_in_order(tmp_path: Path) -> None:
    images = load(tar(tmp_path / "a.tar", *THREE))
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images.labels.tolist() == [0, 1, 1]


def test_the_tars_of_a_folder_are_one_set_in_the_order_of_their_names(tmp_path: Path) -> None:
    tar(tmp_path / "1.tar", *THREE[2:])
    tar(tmp_path / "0.tar", *THREE[:2])
    (tmp_path / "notes.txt").write_text("?")
    cache = tmp_path / "cache"
    for _ in range(2):
        assert load(tmp_path, cache=cache).images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_json_gives_labels_and_units(tmp_path: Path) -> None:
    said: list[str] = []
    parts = [*sample("a", 1, 0, unit=1), *sample("b", 2, 1, unit="0", age=50), *sample("c", 3, 1, unit=1)]
    images = load(tar(tmp_path / "a.tar", *parts, ("c.txt", b"a cat")), units=2, say=said.append)
    assert images.units.tolist() == [1, 0, 1]
    assert said == [f"{tmp_path / 'a.tar'}: not used: '.txt', 'age'"]


def test_a_key_that_may_be_the_owner_is_not_passed_over_and_another_file_may_be(tmp_path: Path) -> None:
    parts = [*sample("a", 1, 0), *sample("b", 2, 1)]
    assert "'patient'" in complaint(tar(tmp_path / "a.tar", *parts, *sample("c", 3, 1, patient="7")))
    noted = tar(tmp_path / "b.tar", *parts, *sample("c", 3, 1), ("c.txt", b"a cat"))
    assert load(noted).units.tolist() == [0, 1, 2]


def test_labels_that_are_names_are_numbered_in_the_order_of_the_names(tmp_path: Path) -> None:
    parts = [*sample("a", 1, "dog"), *sample("b", 2, "cat"), *sample("c", 3, "dog")]
    assert load(tar(tmp_path / "a.tar", *parts)).labels.tolist() == [1, 0, 1]
    said = complaint(tar(tmp_path / "a.tar", *parts), classes=3)
    assert "name 2 classes, ['cat', 'dog'], but data.classes = 3" in said
    assert "use one kind" in complaint(tar(tmp_path / "a.tar", *parts, *sample("z", 4, 1)))


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([], "contains no images"),
        ([("a.cls", b"0")], "a: has 0 images"),
        ([("a.png", picture(1)), ("a.jpg", picture(1)), ("a.cls", b"0")], "a: has 2 images"),
        ([("a.png", picture(1))], "a: the label is 'None'"),
        ([("a.png", picture(1)), ("a.cls", b"")], "a: the label is ''"),
        ([("a.png", picture(1)), ("a.cls", b"\xff")], "a.cls: is not text"),
        ([("a.png", picture(1)), ("a.cls", b"0" * 2**21)], "a.cls: has 2097152 bytes"),
        ([("a.png", picture(1)), ("a.json", b"{")], "a.json: is not JSON"),
        ([("a.png", picture(1)), ("a.json", b"[" * 100_000)], "a.json: is not JSON"),
        ([("a.png", picture(1)), ("a.json", b"[0]")], "a.json: must be an object"),
        ([("a.png", picture(1)), ("a.json", b'{"label": true}')], "the label is 'True'"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 1.5}')], "the label is '1.5'"),
        ([("a.png", picture(1)), ("a.json", b'{"label": -1}')], "the label is -1"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 1' + b"0" * 30 + b"}")], "the label is 10000"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 1, "unit": ""}')], "name the owner"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 1, "unit": null}')], "name the owner"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 1}'), ("a.cls", b"0")], "different labels"),
        ([*sample("a", 1, 0, unit=1), *sample("b", 1, 0)], "name the owner of every image"),
        ([*sample("a", 1, 0), *sample("b", 1, 0), *sample("a", 1, 0)], "/a: is in the tar files twice"),
        ([*sample("a", 1, 0), ("a.PNG", picture(2))], "a.PNG: is in the tar file twice"),
        ([*sample("a", 1, 2)], "data.classes = 2"),
        ([("a.png", b"junk"), ("a.cls", b"0")], "a.png: cannot be read as an image"),
        (sample("..", 1, 0), "has 0 images"),
        (sample("a\0b", 1, 0), "a: is in the tar file twice"),
    ],
)
def test_a_bad_member_is_named(tmp_path: Path, members: list[tuple[str, bytes]], part: str) -> None:
    assert part in complaint(tar(tmp_path / "a.tar", *members), units=1)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    change = {"type": kind, "linkname": "/etc/passwd", "size": 0}
    path = tar(tmp_path / "a.tar", ("a.cls", b"0"), ("a.png", b""), change=change)
    assert "a.png: is a link or no plain file" in complaint(path)


@pytest.mark.parametrize("name", ["/etc/a", "../../a", "x" * 5000, "é\n\x1b[2Ja", "\u202ea"])
def test_a_hostile_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.parent.rglob("*"))
    path = tar(tmp_path / "a.tar", (f"{name}.cls", b"0"), (f"{name}.png", picture(9)))
    assert load(path, units=1).images.max() == 9
    bad = tar(tmp_path / "b.tar", (f"{name}.cls", b"0"), (f"{name}.png", b"junk"))
    message = complaint(bad, units=1)
    assert message.isprintable()
    assert len(message) < 700
    assert [path for path in tmp_path.parent.rglob("*") if path not in before] == [path, bad]


def test_a_size_that_lies_asks_for_no_memory(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.cls", b"0"), ("a.png", picture(1)))
    content = bytearray(path.read_bytes())
    at = content.index(b"a.png")
    content[at + 124 : at + 136] = b"\x80" + (2**60).to_bytes(11, "big")
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content)
    assert "a.png: is cut short" in complaint(path)


@pytest.mark.parametrize("content", [b"", b"junk" * 500, b"\0" * 2048, "gzip", "cut"])
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes | str) -> None:
    path = tar(tmp_path / "a.tar", *THREE, mode="w:gz" if content == "gzip" else "w")
    if content == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert str(path) in complaint(path)


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    assert "no tar file" in complaint(tmp_path / "absent.tar")
    assert "no tar file" in complaint(tmp_path)
