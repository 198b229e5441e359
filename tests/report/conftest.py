"""The finished run and the settings that evaluations' tests share."""

from tests.evaluation.conftest import one_thread, quick, run

__all__ = ["one_thread", "quick", "run"]
