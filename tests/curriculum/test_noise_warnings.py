"""A run that noise will drown says so when it starts, with the figure that it goes by."""

from pathlib import Path

import pytest

from tests.support.runs import finish, tiny


def test_a_run_that_noise_will_drown_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(tiny(tmp_path / "run"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert any("signal over its noise is" in line for line in said)
