"""Who may import whom (design §5), read from every file's syntax tree."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted([*ROOT.glob("curriculumdp/**/*.py"), *ROOT.glob("kernels/dpkernels/**/*.py")])
# Top-level names beside the standard library, and parts of curriculumdp, that a part may import: whole lists.
MAY_IMPORT = {
    "kernels/dpkernels": {"torch", "triton", "dpkernels"},
    "curriculumdp/clipping": {"torch", "dpkernels", "curriculumdp.clipping", "curriculumdp.errors"},
    "curriculumdp/privacy": {
        *("numpy", "scipy", "torch", "cryptography", "dp_accounting", "opacus", "dpkernels"),
        *("curriculumdp.privacy", "curriculumdp.disk", "curriculumdp.errors"),
    },
    "curriculumdp/ledger": {
        *("numpy", "curriculumdp.ledger", "curriculumdp.privacy", "curriculumdp.disk", "curriculumdp.errors"),
    },
    "curriculumdp/config": {
        *("pydantic", "pydantic_core", "yaml", "curriculumdp.config", "curriculumdp.phases"),
        *("curriculumdp.errors", "curriculumdp.printable", "curriculumdp.privacy.event", "dpkernels.limits"),
    },
}
# What a part may not import, whatever else it does.
MAY_NOT_IMPORT = {
    "curriculumdp/diffusion": {"curriculumdp.privacy"},
    "curriculumdp/data": {"diffusers", "curriculumdp.privacy", "curriculumdp.diffusion"},
}


def imports(file: Path) -> Iterator[str]:
    """The dotted name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides which part it means"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in allowed)


@pytest.mark.parametrize("file", CODE, ids=[str(file.relative_to(ROOT)) for file in CODE])
def test_a_file_imports_only_what_its_part_may(file: Path) -> None:
    place = file.relative_to(ROOT)
    for name in imports(file):
        for part, allowed in MAY_IMPORT.items():
            if place.is_relative_to(part):
                assert within(name, allowed | sys.stdlib_module_names), f"{part} may not import {name}"
        for part, forbidden in MAY_NOT_IMPORT.items():
            if place.is_relative_to(part):
                assert not within(name, forbidden), f"{part} may not import {name}"
        if not any(
            place.is_relative_to(f"curriculumdp/{part}") for part in ("config", "curriculum", "commands")
        ):
            assert not within(name, {"curriculumdp.config"}) or within(
                name, {"curriculumdp.config.yaml_file"}
            ), "leaves get plain values, never the config"
        if not place.is_relative_to("curriculumdp/diffusion"):
            assert not within(name, {"diffusers"}), "curriculumdp.diffusion is the one place for diffusers"
        assert not within(
            name, {"torchvision", "pickle", "tests", "launch", "bench", "curriculumdp.commands"}
        ), f"no code imports {name}"


@pytest.mark.parametrize("name", ["event", "accountant", "calibrate"])
def test_accounting_has_no_torch_outside_functions(name: str) -> None:
    tree = ast.parse((ROOT / f"curriculumdp/privacy/{name}.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name for node in top for alias in node.names} | {
        getattr(node, "module", None) for node in top
    }
    assert not found & {"torch", "opacus", "opacus.accountants"}


def test_no_file_imports_itself_through_others() -> None:
    """Imports inside functions and those for types alone count too: a circle is a room that is not one."""
    names = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("kernels."): file for file in CODE
    }
    graph = {
        module: {
            found
            for name in imports(file)
            for found in (name, name.rpartition(".")[0])
            if found in names and found != module
        }
        for module, file in names.items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_but_curriculumdp_and_dpkernels_is_a_package() -> None:
    inits = {init.relative_to(ROOT) for init in ROOT.rglob("__init__.py") if not hidden(init)}
    rooms = ("curriculumdp", "kernels/dpkernels")
    elsewhere = {i for i in inits if not any(i.is_relative_to(room) for room in rooms)}
    assert not elsewhere, "a kernels/__init__.py shadows the PyPI package that diffusers looks for"
    assert {Path("curriculumdp/__init__.py"), Path("kernels/dpkernels/__init__.py")} <= inits


def hidden(file: Path) -> bool:
    return any(
        part.startswith(".") or part in ("runs", "build", "dist") for part in file.relative_to(ROOT).parts
    )


def test_torchvision_is_not_in_the_environment() -> None:
    assert importlib.util.find_spec("torchvision") is None, (
        "beside a CPU torch it breaks diffusers: uninstall it"
    )
