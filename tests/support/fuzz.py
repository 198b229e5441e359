"""Random text and values, the same in every session, each of which must be taken or refused in one line."""

import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.tried import TRIED

# YAML's and JSON's own letters, and some that are none.
SPECIAL = "&*!|>%@`'\"{}[],:?-#~=<0x1e9.:_ \t\n\\\0\x1b\u2028é𝔘" + string.ascii_letters[:8]
VALUES = st.one_of(
    st.text(SPECIAL, max_size=40),
    st.sampled_from(
        [
            *("", "null", "~", "yes", ".nan", ".inf", "-.inf", "1e999", "-0", "0x" + "f" * 5000, "9" * 5000),
            *(
                "[" * 3000,
                "{a: " * 3000,
                "&a [*a]",
                "<<: {a: 1}",
                "!!python/object:os.system x",
                "!!binary a",
            ),
            *(
                "2024-99-99",
                "2024-01-01",
                "1:" * 4000 + "1",
                "!!set {a}",
                "? a",
                "'",
                "- - - -",
                "[1, 2",
                "...",
            ),
            *("!!float 1:1:1", "\ud7ff", "a" * 5000, "{1: 2, [3]: 4}", "!!omap [a: 1]", "0o17", "1_000"),
        ]
    ),
    st.floats().map(str),
    st.integers(-(10**40), 10**40).map(str),
)


def examples(times: int, slow: int) -> list[Any]:
    """The same property as an unmarked test of a few inputs and as a slow one of many."""
    return [times, pytest.param(slow, marks=pytest.mark.slow)]


def fuzz(times: int, **inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Calls a function at once with `times` inputs, the same in every session."""

    def call(check: Callable[..., None]) -> None:
        def counted(**given_inputs: Any) -> None:
            TRIED["attacks fuzz inputs"] += 1
            check(**given_inputs)

        set_up = settings(
            max_examples=times,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        seed(8)(set_up(given(**inputs)(counted)))()

    return call


def one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
