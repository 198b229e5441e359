"""How a run may end under a fault: as it should, or in one clear line, as a user would see it."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

from curriculumdp.command import BAD_INPUT, one_line_errors
from tests.support.runs import finish
from tests.support.small_run import small


def refusal_of(work: Callable[[], object]) -> str | None:
    """The one line in which `work` ends, or None if it succeeds; AssertionError for anything else."""
    told = io.StringIO()
    status: object = None
    try:
        with contextlib.redirect_stderr(told), one_line_errors():
            work()
    except SystemExit as ended:
        status = ended.code
    except Exception as error:
        raise AssertionError(f"no clear line but {type(error).__name__}: {error}") from error
    if status is None:
        return None
    assert status == BAD_INPUT
    lines = [line for line in told.getvalue().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told.getvalue()
    assert lines[0].isprintable()
    assert 20 < len(lines[0]) < 600, lines[0]
    return lines[0]


def run_or_refusal(run_dir: Path, data: Path) -> str | None:
    """The line in which a small run ends, or None if it comes to its release."""
    return refusal_of(lambda: finish(small(run_dir, data)))
