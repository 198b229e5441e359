"""One thread, as in all tests."""

from tests.evaluation.conftest import one_thread

__all__ = ["one_thread"]
