"""Text is UTF-8 in every file, whatever the locale, and no console makes a command fail."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted([*ROOT.glob("curriculumdp/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("launch/*.py")])
# Under it, Python takes ASCII for the console, for files and for the names of files.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens a file as text: `path.read_text`, `path.write_text`, or `open` without "b" in its mode."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return True
    of_path = isinstance(call.func, ast.Attribute)
    modes = [a.value for a in call.args[0 if of_path else 1 :] if isinstance(a, ast.Constant)]
    capital = of_path and ast.unparse(call.func)[:1].isupper()  # a class of ours, or PIL's
    others = ("os.open", "gzip.open", "archive.open", "cls.open", "tarfile.open")
    return (
        name == "open"
        and not capital
        and ast.unparse(call.func) not in others
        and not any("b" in m for m in modes)
    )


@pytest.mark.parametrize("file", CODE, ids=[str(file.relative_to(ROOT)) for file in CODE])
def test_every_text_file_is_opened_with_its_encoding(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and opens_text(node):
            assert "encoding" in {word.arg for word in node.keywords}, f"line {node.lineno}"


def command(*words: object, encoding: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | ASCII | {"PYTHONIOENCODING": encoding}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=ROOT, capture_output=True, check=False
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_a_run_is_planned_trained_verified_and_reported_under_any_locale(
    tmp_path: Path, encoding: str
) -> None:
    """Before, a run trained to its end and then failed at its model card, at every retry."""
    run = tmp_path / "run"
    config = [
        *(
            "configs/digits.yaml",
            f"run_dir={run}",
            "model.channels=[8]",
            "model.attention=[]",
            "private.steps=1",
        ),
        *("warmup.steps=1", "sampling.steps=2", "sampling.per_class=1", "private.draws=1"),
    ]
    for words in (
        ["launch/plan.py", *config],
        ["launch/train.py", *config],
        ["launch/verify.py", run],
        ["launch/report.py", run],
    ):
        done = command(*words, encoding=encoding)
        assert done.returncode == 0, (words[0], done.stderr.decode(encoding, "replace"))
    assert json.loads((run / "release" / "privacy.json").read_text(encoding="utf-8"))
