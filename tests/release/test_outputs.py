"""Outputs of commands are refused before the work or written as a whole, and a failing disk leaves the earlier ones."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from curriculumdp.audit import audit
from curriculumdp.disk import OutputError
from curriculumdp.release import sample
from curriculumdp.report import compare, report
from curriculumdp.report.compare import RunFigures
from tests.support.failing_disk import Disk, Operation

Write = Callable[[Path, int], object]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sampling that takes no time: images of one grey value, which the last entry says."""
    value = [0]

    def images(net: object, labels: Any, **_: object) -> np.ndarray:
        return np.full((len(labels), 8, 8, 1), value[-1], np.uint8)

    monkeypatch.setattr(sample, "sample_images", images)
    monkeypatch.setattr(sample, "load_pipeline", lambda _: (SimpleNamespace(to=lambda _: None), 0.5))
    return value


def outputs_of(release: Path, sampled: list[int], monkeypatch: pytest.MonkeyPatch) -> dict[str, Write]:
    """Each command's writing: what it writes to a place differs by variant."""

    def samples(place: Path, variant: int) -> None:
        sampled.append(variant)
        sample.sample_release(release, 3, place / "out", png=True, grid=place / "grids/grid.png")

    def compared(place: Path, variant: int) -> None:
        figures = {"accuracy": {"logistic": 0.5 + variant / 10}, "fd": 1.0, "kid": 0.1, "network": "ab"}
        run = RunFigures(name="a", phases="p", epsilon=1.0, delta=1e-5, hours=None, settings="", **figures)  # type: ignore[arg-type]
        compare.require_place(place / "table")
        compare.write_comparison([run], place / "table")

    def audited(place: Path, variant: int) -> None:
        monkeypatch.setattr(audit, "audit_plot", lambda record: b"plot %d" % record["variant"])
        audit.write_audit({"privacy": "PUBLIC", "variant": variant}, place)

    def reported(place: Path, variant: int) -> None:
        (place / "release").mkdir(exist_ok=True)
        (place / "private").mkdir(exist_ok=True)
        monkeypatch.setattr(report, "public_report", lambda *_: f"public {variant}")
        monkeypatch.setattr(report, "private_report", lambda _: f"private {variant}")
        report.write_reports(place)

    return {"sample": samples, "compare": compared, "audit": audited, "report": reported}


COMMANDS = ("sample", "compare", "audit", "report")


def whole_outputs(place: Path) -> dict[str, object]:
    """What lies at each output's place: a file's bytes; the folder of pictures counts as one."""
    pictures = place / "out" / "png"
    found: dict[str, object] = {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.is_relative_to(pictures)
    }
    if pictures.exists():
        files = [path for path in sorted(pictures.rglob("*")) if path.is_file()]
        found["out/png"] = [(str(path.relative_to(pictures)), path.read_bytes()) for path in files]
    return found


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("lasting", [False, True])
def test_a_failing_disk_leaves_each_output_as_it_was_or_as_it_will_be(
    release: Path, sampled: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, lasting: bool
) -> None:  # fmt: skip
    write = outputs_of(release, sampled, monkeypatch)[command]
    (tmp_path / "earlier").mkdir()
    write(tmp_path / "earlier", 1)
    later = Path(shutil.copytree(tmp_path / "earlier", tmp_path / "later"))
    with Disk(later, lambda _: None) as counted:
        write(later, 2)
    old, new = whole_outputs(tmp_path / "earlier"), whole_outputs(later)
    assert old.keys() == new.keys()
    assert old != new
    failed = 0
    for number in range(1, counted.number + 1):
        place = Path(shutil.copytree(tmp_path / "earlier", tmp_path / f"{number}"))

        def before(operation: Operation, number: int = number) -> None:
            if operation.number == number or (lasting and operation.number > number and operation.content()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation.path))

        with Disk(place, before):
            try:
                write(place, 2)
            except OSError:
                failed += 1
        found = whole_outputs(place)
        for name in old:
            if name == "out/png" and name not in found:  # moved aside when the disk failed to move it back
                continue
            assert found[name] in (old[name], new[name]), (number, name)
        write(place, 2)  # the disk is well again
        assert whole_outputs(place) == new
    assert failed > 1


def a_folder(path: Path) -> Path:
    (path / "inside").mkdir(parents=True)
    return path


def a_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    return path


@pytest.mark.parametrize(
    ("command", "taken", "said"),
    [
        ("sample", lambda at: a_folder(at / "grids/grid.png"), "is a folder"),
        ("sample", lambda at: a_file(at / "grids"), "is not a folder"),
        ("sample", lambda at: a_file(at / "out"), "is not a folder"),
        ("sample", lambda at: a_folder(at / "out/images.npz"), "is a folder"),
        ("sample", lambda at: a_file(at / "out/png/thesis.tex"), "something other than sampled images"),
        ("sample", lambda at: a_file(at / "out/png"), "is not a folder"),
        ("compare", lambda at: a_file(at / "table"), "is not a folder"),
        ("compare", lambda at: a_folder(at / "table/compare.png"), "is a folder"),
        ("audit", lambda at: a_file(at / "audit"), "is not a folder"),
        ("audit", lambda at: a_folder(at / "audit/audit.json"), "is a folder"),
        ("report", lambda at: a_folder(at / "report_public.html"), "is a folder"),
        ("report", lambda at: a_folder(at / "private/report.html"), "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    release: Path, sampled: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, taken: Callable[[Path], Path], said: str,
) -> None:  # fmt: skip
    write = outputs_of(release, sampled, monkeypatch)[command]
    place = taken(tmp_path)
    before = whole_outputs(tmp_path)
    with pytest.raises(OutputError, match=said) as refused:
        write(tmp_path, 1)
    assert str(tmp_path) in str(refused.value)
    assert place.exists()
    assert whole_outputs(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(release: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="is not writable"):
        sample.sample_release(release, 1, tmp_path / "out")


def test_pictures_of_an_earlier_call_never_stay_beside_new_arrays(
    release: Path, sampled: list[int], tmp_path: Path
) -> None:
    sample.sample_release(release, 5, tmp_path, png=True)
    with pytest.raises(OutputError, match="pictures of an earlier call: add --png"):
        sample.sample_release(release, 2, tmp_path)
    sample.sample_release(release, 2, tmp_path, png=True)
    assert len(list((tmp_path / "png/train").glob("*.png"))) == 2
