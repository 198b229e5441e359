"""Decoded images: kept privately while they are true, resumed where a decode was interrupted, mapped and not copied."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curriculumdp.data import decode as decoding
from curriculumdp.data import folders
from curriculumdp.data.cache import Partial
from curriculumdp.data.decode import MAX_NAMED, Stopped
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images
from tests.support.runs import in_child

COUNT = 60


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value in range(COUNT):
        picture(tmp_path / "images" / "ab"[value % 2] / f"{value:02d}.bmp", value)
    return tmp_path / "images"


def load(folder: Path, **asked: Any) -> ImageSet:
    settings = {
        "classes": 2,
        "channels": 1,
        "size": 8,
        "units": COUNT,
        "cache": folder.parent / "cache",
    } | asked
    return load_images(source="image_folder", path=str(folder), **settings)


def cached(folder: Path) -> Path:
    return folder.parent / "cache" / "images-train"


def part(folder: Path) -> Path:
    return folder.parent / "cache" / "images-train.part"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded, in that order."""
    names: list[str] = []
    whole = folders.picture_pixels

    def counting(path: Path, how: Any) -> Any:
        names.append(path.name)
        return whole(path, how)

    monkeypatch.setattr(folders, "picture_pixels", counting)
    return names


def test_images_are_decoded_once_and_kept_privately(folder: Path, decoded: list[str]) -> None:
    first = load(folder)
    assert sorted(decoded) == [f"{value:02d}.bmp" for value in range(COUNT)]
    again = load(folder)
    assert len(decoded) == COUNT
    assert np.array_equal(first.images, again.images)
    assert first.images[:, 0, 0, 0].tolist() == [*range(0, COUNT, 2), *range(1, COUNT, 2)]
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in [cached(folder).parent, *cached(folder).parent.iterdir()]
    }
    assert modes == {"cache": 0o700, "images-train": 0o600, "images-train.json": 0o600}


def test_what_was_done_to_the_images_is_counted_beside_them_and_nowhere_else(folder: Path) -> None:
    Image.new("L", (16, 8)).save(folder / "a" / "00.bmp")
    said: list[str] = []
    load(folder, say=said.append)
    counts = json.loads(cached(folder).with_name("images-train.json").read_text())
    assert (counts["ready"], counts["not_square"]) == (COUNT, 1)
    assert said == []


def test_images_are_mapped_from_the_cache_and_what_is_written_to_them_stays_in_the_process(
    folder: Path,
) -> None:
    for images in (load(folder).images, load(folder).images):
        assert not images.flags.owndata
        assert str(cached(folder)) in Path("/proc/self/maps").read_text()
        images[0] = 255
        del images
    assert load(folder).images[0].max() == 0


def test_a_changed_file_or_setting_is_decoded_anew(folder: Path) -> None:
    load(folder)
    written = cached(folder).stat().st_mtime_ns
    picture(folder / "a" / "00.bmp", 77)
    os.utime(folder / "a" / "00.bmp", ns=(1, written + 10**9))
    assert load(folder).images[0, 0, 0, 0] == 77
    assert load(folder, channels=3).images.shape == (COUNT, 3, 8, 8)
    assert load(folder, fit="stretch").images.shape == (COUNT, 1, 8, 8)


def test_a_picture_exchanged_under_its_old_time_and_size_is_decoded_anew(folder: Path) -> None:
    first = folder / "a" / "00.bmp"
    load(folder)
    was = first.stat()
    picture(first, 77)
    os.utime(first, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert first.stat().st_size == was.st_size
    assert load(folder).images[0, 0, 0, 0] == 77


@pytest.mark.parametrize("place", [0, 30, 90, 100, 4096, 5000, -1])
def test_a_changed_byte_anywhere_makes_a_cache_count_as_absent(
    folder: Path, decoded: list[str], place: int
) -> None:
    first = load(folder).images.copy()
    content = bytearray(cached(folder).read_bytes())
    content[place] ^= 0xFF
    cached(folder).write_bytes(content)
    assert np.array_equal(load(folder).images, first)
    assert len(decoded) == 2 * COUNT


@pytest.mark.parametrize("damage", ["empty", "junk", "half", "longer", "folder", "link"])
def test_a_damaged_cache_is_made_anew(folder: Path, damage: str) -> None:
    first = load(folder).images.copy()
    content = cached(folder).read_bytes()
    cached(folder).unlink()
    if damage == "folder":
        cached(folder).mkdir()
        with pytest.raises(DataError, match="cannot cache the decoded images"):
            load(folder)
        return
    if damage == "link":
        cached(folder).symlink_to("/dev/zero")
    else:
        half = content[: len(content) // 2]
        cached(folder).write_bytes(
            {"empty": b"", "junk": b"junk", "half": half, "longer": content + b"x"}[damage]
        )
    assert np.array_equal(load(folder).images, first)
    assert cached(folder).read_bytes() == content


def interrupted_after(count: int) -> Any:
    """A `stop` that becomes true once `count` images are decoded."""
    seen = iter(range(10**6))
    return lambda: next(seen) >= count


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time, and a look for a signal after each."""
    monkeypatch.setattr(decoding, "THREADS", 1)
    monkeypatch.setattr(decoding, "POLL", 0.001)
    whole = folders.picture_pixels
    monkeypatch.setattr(
        folders, "picture_pixels", lambda *args: (threading.Event().wait(0.004), whole(*args))[1]
    )


def test_an_interrupted_decode_resumes_where_it_was(
    folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    with pytest.raises(Stopped):
        load(folder, stop=interrupted_after(20))
    before = len(decoded)
    assert 0 < before < COUNT
    assert part(folder).stat().st_mode & 0o777 == 0o600
    assert not cached(folder).exists()
    images = load(folder).images
    assert sorted(decoded) == [f"{value:02d}.bmp" for value in range(COUNT)]
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(COUNT))
    assert not part(folder).exists()


def test_a_killed_decode_resumes_from_what_was_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(decoding, "KEEP", 0.02)
    kept = Partial.keep
    calls = []

    def keep_then_die(self: Partial, facts: np.ndarray) -> None:
        kept(self, facts)
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        monkeypatch.setattr(Partial, "keep", keep_then_die)
        load(folder)

    assert in_child(killed) == -signal.SIGKILL
    with_part = Partial(cached(folder), part(folder).read_bytes()[24:88].decode(), (COUNT, 1, 8, 8))
    ready = np.flatnonzero(with_part.facts)
    with_part.close()
    assert 0 < len(ready) < COUNT
    assert sorted(load(folder).images[:, 0, 0, 0].tolist()) == list(range(COUNT))


def test_a_part_of_other_files_is_not_taken_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    with pytest.raises(Stopped):
        load(folder, stop=interrupted_after(20))
    for path in folder.rglob("*.bmp"):
        picture(path, 200)
    assert (load(folder).images == 200).all()


def test_a_link_in_the_place_of_a_part_is_not_followed(folder: Path, tmp_path: Path) -> None:
    part(folder).parent.mkdir()
    (tmp_path / "precious").write_text("precious")
    part(folder).symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="cannot cache the decoded images"):
        load(folder)
    assert (tmp_path / "precious").read_text() == "precious"


def test_while_another_process_writes_the_cache_images_are_decoded_into_memory(folder: Path) -> None:
    other = Partial(cached(folder), "0" * 64, (COUNT, 1, 8, 8))
    assert load(folder).images.flags.owndata
    other.close()
    assert not load(folder).images.flags.owndata


@pytest.mark.parametrize("bad", [1, 3, MAX_NAMED + 5])
@pytest.mark.parametrize("kept", [False, True])
def test_all_bad_images_are_named_at_once_and_the_good_ones_kept(
    folder: Path, decoded: list[str], bad: int, kept: bool
) -> None:
    for value in range(bad):
        (folder / "ab"[value % 2] / f"{value:02d}.bmp").write_bytes(b"BM junk")
    with pytest.raises(DataError) as raised:
        load(folder, **({} if kept else {"cache": None}))
    message = str(raised.value)
    assert "\n" not in message
    named = [value for value in range(bad) if f"{value:02d}.bmp" in message]
    assert len(named) == min(bad, MAX_NAMED)
    assert message.count("cannot be read as an image") == 1
    if bad > 1:
        assert f"{min(bad, MAX_NAMED)} images cannot be used" in message
        assert ("at least" in message) == (bad > MAX_NAMED)
    if kept and bad < MAX_NAMED:
        for value in range(bad):
            picture(folder / "ab"[value % 2] / f"{value:02d}.bmp", value)
        assert sorted(load(folder).images[:, 0, 0, 0].tolist()) == list(range(COUNT))


def test_progress_is_a_share_without_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(decoding, "TELL", 0.05)
    said: list[str] = []
    load(folder, say=said.append)
    assert said
    assert all(line.startswith("decoding the images: ") and line.endswith(" %") for line in said)
    assert not any(str(COUNT) in line.removesuffix(f"{COUNT} %") for line in said)


def test_a_full_disk_is_said_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: 7 if at > 4096 else whole(file, content, at))
    with pytest.raises(DataError, match="No space left on device"):
        load(folder)


def test_a_cache_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot cache the decoded images"):
        load(folder, cache=tmp_path / "file" / "cache")
