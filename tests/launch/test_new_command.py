"""launch/new.py writes a config to where none is, and ends a place that is taken or missing in one line."""

import errno
import os
import sys
from pathlib import Path

import pytest

from curriculumdp.command import BAD_INPUT, one_line_errors
from curriculumdp.commands.new import main

FIGURES = ("--units", "300", "--classes", "2", "--size", "16", "--channels", "1", "--epsilon", "8")


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_not_overwritten(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    make = {"file": lambda: out.write_text("mine"), "folder": out.mkdir}
    make.get(kind, lambda: out.symlink_to("nowhere"))()
    monkeypatch.setattr(sys, "argv", ["new.py", *FIGURES, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == BAD_INPUT
    assert (
        capsys.readouterr().err == f"error: {out}: exists already: give another --out, or remove it first\n"
    )
    assert kind != "file" or out.read_text() == "mine"


@pytest.mark.parametrize(
    "code", [errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG], ids=errno.errorcode.get
)
def test_a_path_that_cannot_be_written_is_one_line(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise OSError(code, os.strerror(code), "place")
    assert ended.value.code == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"error: place: {os.strerror(code)}")
