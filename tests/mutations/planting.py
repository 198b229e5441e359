"""Plants a fault: one line of one real function is replaced, in place, and a named test must then fail.

The function's code object is exchanged, so that every name by which anybody imported it runs the fault. All of it
happens in a forked child, which says over a pipe how the test ended.
"""

import ast
import contextlib
import importlib
import inspect
import json
import linecache
import os
import re
import signal
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

import pytest
from triton.runtime.interpreter import InterpretedFunction

from tests.mutations.calling import call_test
from tests.support.tried import PLANTED

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds a check may take before it counts as broken
# What a line that does not fit its surroundings dies of, in this process or in one that a test started.
CRASHES = re.compile(
    r"^(NameError|UnboundLocalError|SyntaxError|ImportError|ModuleNotFoundError|AttributeError|TypeError|IndexError)\b",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Check:
    """A test of the ordinary suite and what it is called with; fixtures are made as pytest would make them."""

    test: str  # "tests.curriculum.test_central:test_a_query_of_nobody_is_zero"
    given: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        module, _, name = self.test.partition(":")
        values = "-".join(getattr(value, "__name__", str(value)) for value in self.given.values())
        return f"{module.removeprefix('tests.').replace('.', '/')}::{name}" + (
            f"[{values}]" if values else ""
        )


@dataclass(frozen=True)
class Fault:
    """`old`, once in `function`'s source, becomes `new`; `check` must then fail.

    function: "curriculumdp.privacy.grid_noise:add_noise", or a Triton kernel, as the interpreter runs it. uses: names
    that the new line needs, as an import brings.
    raises: the error of this package by which the code itself may refuse the fault, where that is the check.
    """

    name: str
    function: str
    old: str
    new: str
    check: Check
    uses: Mapping[str, Any] = field(default_factory=dict)
    raises: tuple[type[Exception], ...] = ()

    @cached_property
    def target(self) -> tuple[FunctionType, Any]:
        """(the function whose code is exchanged, what stands in its module under its name)."""
        module, _, path = self.function.partition(":")
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = inspect.getattr_static(found, part)
        inner = found.fget if isinstance(found, property) else found
        inner = inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner
        function = inner.fn if isinstance(inner, InterpretedFunction) else inspect.unwrap(inner)
        assert isinstance(function, FunctionType), f"{self.function} is no function"
        return function, found

    def mutated(self) -> str:
        """The function's source with the fault in it; AssertionError unless the line is there exactly once."""
        source = textwrap.dedent(inspect.getsource(self.target[0]))
        assert source.count(self.old) == 1, (
            f"{self.function} holds {self.old!r} {source.count(self.old)} times"
        )
        assert "\n" not in self.new
        return source.replace(self.old, self.new)

    def plant(self) -> None:
        """Exchanges the function's code for the faulty one, for every caller in this process."""
        function, found = self.target
        tree = ast.parse(self.mutated())
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.decorator_list = []
        scope = {**function.__globals__, **self.uses}
        # Triton's interpreter, and tests that read a kernel, take its source from where its code says it is.
        file = f"<fault: {self.name}>"
        source = ast.unparse(definition)
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), scope)
        faulty = scope[definition.name]
        assert faulty.__code__.co_freevars == function.__code__.co_freevars
        function.__globals__.update(self.uses)
        function.__code__ = faulty.__code__
        function.__defaults__, function.__kwdefaults__ = faulty.__defaults__, faulty.__kwdefaults__
        if hasattr(found, "cache_clear"):
            found.cache_clear()
        if isinstance(found, InterpretedFunction):
            found.rewritten_fn.pop(function, None)


@dataclass(frozen=True)
class Outcome:
    """How a check ended: "passed", "failed" (as a test fails), "refused" (by a named error) or "broke"."""

    kind: str
    text: str
    seconds: float


def outcome(check: Check, fault: Fault | None, place: Path, fixtures: Mapping[str, Any]) -> Outcome:
    """What comes of `check` in a forked child, with `fault` planted there."""
    importlib.import_module(check.test.partition(":")[0])  # once, here, and not in every child
    began = time.monotonic()
    reader, writer = os.pipe()
    with tempfile.TemporaryFile(dir=place) as said:
        child = os.fork()
        if child == 0:
            os.close(reader)
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            _report(writer, lambda: _run(check, fault, place, fixtures), fault)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        said.seek(0)
        output = said.read().decode(errors="replace")
    kind, text = json.loads(answer) if answer else ("broke", f"it died or took more than {PATIENCE} s")
    if kind == "failed" and (crash := CRASHES.search(output)):
        kind, text = "broke", f"a process that the test started died of {crash.group()}: {output[-1500:]}"
    return Outcome(kind, text, time.monotonic() - began)


def _run(check: Check, fault: Fault | None, place: Path, fixtures: Mapping[str, Any]) -> None:
    if fault is not None:
        fault.plant()
    call_test(check.test, dict(check.given), place, fixtures)


def _report(writer: int, work: Callable[[], None], fault: Fault | None) -> NoReturn:
    """Ends this child after `work`, its outcome written to `writer`."""
    signal.alarm(PATIENCE)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answer = ("passed", "")
    try:
        work()
    except (AssertionError, pytest.fail.Exception) as error:
        own = _raised_by_the_code_itself(error)
        answer = ("broke" if own else "failed", traceback.format_exc()[-1500:])
    except BaseException as error:
        refused = fault is not None and isinstance(error, fault.raises)
        answer = ("refused" if refused else "broke", traceback.format_exc()[-1500:])
    finally:
        with contextlib.suppress(OSError):
            os.write(writer, json.dumps(answer).encode())
        os._exit(0)


def _raised_by_the_code_itself(error: BaseException) -> bool:
    """Whether an `assert` of the product stopped it, which says nothing about the test."""
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename)
    return any(last.is_relative_to(ROOT / part) for part in ("curriculumdp", "kernels"))


def unique_checks(faults: Sequence[Fault]) -> list[Check]:
    """Each check that catches one of `faults`, once."""
    return list({str(fault.check): fault.check for fault in faults}.values())


def require_caught(fault: Fault, place: Path, prepared: Mapping[str, Any]) -> None:
    """Plant the fault, and fail unless its check fails; the table at the session's end says what caught it."""
    found = outcome(fault.check, fault, place, prepared)
    caught = found.kind in ("failed", "refused")
    text = str(fault.check) if caught else f"SURVIVED {fault.check}: {found.kind}"
    PLANTED.append((fault.name, text, found.seconds))
    assert caught, f"{found.kind}: {found.text}"


def require_clean(check: Check, place: Path, prepared: Mapping[str, Any]) -> None:
    """Fail unless the check passes on the code as it is."""
    found = outcome(check, None, place, prepared)
    assert found.kind == "passed", found.text
