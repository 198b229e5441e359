"""launch/sample.py writes the images that were asked for, the same ones each time."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_release import write_release

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "sample.py"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("run") / "release")


def sample(
    monkeypatch: pytest.MonkeyPatch, release: Path, out: Path, *options: object
) -> dict[str, np.ndarray]:
    arguments = [str(part) for part in (release, "--out", out, *options)]
    monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
    assert runpy.run_path(str(COMMAND))["main"]() == 0
    with np.load(out / "images.npz") as kept:
        return dict(kept)


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "--labels" in done.stdout


def test_images_and_labels_are_as_asked(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sample(
        monkeypatch, release, tmp_path / "out", "--num", 5, "--png", "--grid", tmp_path / "sheets/grid.png"
    )
    assert kept["images"].shape == (5, 8, 8, 1)
    assert kept["images"].dtype == np.uint8
    assert kept["labels"].dtype == np.int64
    assert kept["labels"].tolist() == [0, 1, 2, 0, 1]
    files = sorted((tmp_path / "out/png/train").glob("*.png"))
    assert np.array_equal(np.asarray(Image.open(files[1])), kept["images"][1, :, :, 0])
    assert len(files) == 5
    assert Image.open(tmp_path / "sheets/grid.png").size[0] == 5 * 34 + 2


def test_the_same_command_gives_the_same_images(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sample(monkeypatch, release, tmp_path / "a", "--num", 4, "--labels", "2,0")
    again = sample(monkeypatch, release, tmp_path / "b", "--num", 4, "--labels", "2,0")
    other = sample(monkeypatch, release, tmp_path / "c", "--num", 4, "--labels", "2,0", "--seed", 1)
    assert first["labels"].tolist() == [2, 0, 2, 0]
    assert np.array_equal(first["images"], again["images"])
    assert not np.array_equal(first["images"], other["images"])


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_other_samplers_sample(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    kept = sample(monkeypatch, release, tmp_path, "--num", 3, "--sampler", sampler, "--batch", 2)
    assert len(kept["images"]) == 3


@pytest.mark.parametrize(
    "case",
    [
        (("--num", "0"), "must be at least 1"),
        (("--num", "1", "--labels", "0,3"), "label '3' is not a class: the release has classes 0 to 2"),
        (("--num", "1", "--labels", "cats"), "label 'cats' is not a class"),
        (("--num", "1", "--steps", "1"), "at least 2"),
        (("--num", "1", "--seed", "-1"), "seed is -1"),
    ],
)
def test_bad_requests_end_in_one_line(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    case: tuple[tuple[str, ...], str],
) -> None:  # fmt: skip
    options, words = case
    with pytest.raises(SystemExit) as stopped:
        sample(monkeypatch, release, tmp_path / "out", *options)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_release_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sample(monkeypatch, tmp_path, tmp_path / "out", "--num", 1)
    assert "has no readable privacy.json" in capsys.readouterr().err


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        sample(monkeypatch, *words)  # type: ignore[arg-type]
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_how_images_were_made_is_said_and_can_be_asked_for(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(monkeypatch, release, tmp_path, "--num", 1)
    assert "images.npz (sampler dpm, 3 steps)" in capsys.readouterr().out
    sample(monkeypatch, release, tmp_path, "--num", 1, "--for", "fidelity")
    assert "images.npz (sampler churn, 14 steps)" in capsys.readouterr().out


def test_guidance_needs_a_null_class(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, monkeypatch, release, tmp_path, "--num", 1, "--guidance", 2)
    assert "private.label_dropout is 0" in said


@pytest.mark.parametrize("option", ["--license", "--push-to-hub"])
def test_what_is_about_the_pictures_needs_them(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:  # fmt: skip
    assert "add --png" in refusal(capsys, monkeypatch, release, tmp_path, "--num", 1, option, "mit")


def test_nothing_is_uploaded_unless_asked_for_and_the_whole_folder_if_so(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[object, ...]] = []
    monkeypatch.setattr("curriculumdp.release.hub.push", lambda *asked: sent.append(asked) or "there")
    sample(monkeypatch, release, tmp_path, "--num", 1, "--png")
    assert sent == []
    sample(monkeypatch, release, tmp_path, "--num", 1, "--png", "--push-to-hub", "us/digits")
    assert sent == [(tmp_path / "png", "us/digits", "dataset", ["*"])]
    assert capsys.readouterr().out.endswith("uploaded: there\n")


@pytest.mark.parametrize("grid", ["out", "out/images.npz", "out/png/grid.png", "."])
def test_a_grid_in_the_way_of_other_outputs_is_refused(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], grid: str
) -> None:  # fmt: skip
    words = (release, tmp_path / "out", "--num", 1, "--png", "--grid", tmp_path / grid)
    assert "in the way of what --out" in refusal(capsys, monkeypatch, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_no_place_for_samples(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(release.rglob("*"))
    for words in (
        (release, release, "--num", 1),
        (release, release / "more", "--num", 1),
        (release, tmp_path, "--num", 1, "--grid", release / "samples.png"),
    ):
        assert "would no longer verify" in refusal(capsys, monkeypatch, *words)
    assert sorted(release.rglob("*")) == before
