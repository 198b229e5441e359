"""Read a pydantic model from a YAML file and `key.path=value` overrides; every error is one line.

Knows none of a run's options: those are in `sections.py`.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from curriculumdp.errors import UserError
from curriculumdp.printable import printable

Model = TypeVar("Model", bound=BaseModel)
MAX_BYTES = 1_000_000  # of a config file
MAX_DIGITS = 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class ConfigError(UserError):
    """An invalid config file or override; the message is one line."""


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the mapping in a YAML file, with the overrides (their values are YAML) applied."""
    try:
        with Path(os.path.expanduser(path)).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the config file ({error.strerror}); give a file such as configs/digits.yaml"
        ) from None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: not a config file: it has more than {MAX_BYTES} bytes")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, not {shown(values)}")
    for override in overrides:
        _apply(values, override)
    return values


def validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Return `values` as a `model`; a ConfigError names `where`, the first invalid key and how many more there are."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ConfigError(f"{where}: {_flat(_one_line(model, found[0]))}{and_more(len(found))}") from None


def options_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option's dotted key and pydantic FieldInfo, descending into sections."""
    for name, field in model.model_fields.items():
        inner = _section_type(field.annotation)
        if inner is None:
            yield prefix + name, field
        else:
            yield from options_of(inner, f"{prefix}{name}.")


def shown(value: object) -> str:
    """Return the repr of `value` on one line, truncated to 60 characters."""
    text = _flat(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def and_more(found: int) -> str:
    """Return the suffix that states how many of `found` problems follow the first one."""
    return f" (and {found - 1} more problem{'s' if found > 2 else ''})" if found > 1 else ""


def _flat(text: object) -> str:
    """Return untrusted text on one line, safe to print on a terminal."""
    return " ".join(printable(text).split())


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but it refuses duplicate keys instead of taking the last.

    It also refuses aliases, a few lines of which can expand to more than memory holds, and very long numbers, which
    take hours to parse.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed: write the value out", problem_mark=mark
            )
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            problem = f"a number may have at most {MAX_DIGITS} digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' is given twice: keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes, where: str) -> Any:
    """Parse untrusted YAML into plain values. Raises ConfigError, which names `where`, if it is invalid."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {_flat(problem)}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a date such as 2024-99-99
        raise ConfigError(f"{where}: not valid YAML: {_flat(error)}") from None


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    where = f"override {shown(override)}"
    if not equals or not all(parts):
        raise ConfigError(f"{where}: write key.path=value, such as privacy.epsilon=1")
    section = values
    for depth, part in enumerate(parts[:-1], start=1):
        inner = section.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{where}: {'.'.join(parts[:depth])} is {shown(inner)}, not a section")
        section[part] = dict(inner or {})
        section = section[part]
    section[parts[-1]] = parse_yaml(text, where)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _section_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the section at a path of keys, or None if the path leads to an option, an item or nothing."""
    section: type[BaseModel] | None = model
    for key in path:
        field = section.model_fields.get(str(key)) if section else None
        section = _section_type(field.annotation) if field else None
    return section


def _one_line(model: type[BaseModel], error: ErrorDetails) -> str:
    """Return one of pydantic's errors as `key is value: what is allowed (what it means); how to change it`."""
    path = error["loc"]
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] in {"tuple_type", "list_type"}:  # pydantic's words are Python's
        message = "must be a list, such as [1, 2]"
    if not path:
        return message
    key, value = ".".join(map(str, path)), shown(error["input"])
    option = ".".join(part for part in path if isinstance(part, str))  # without an item's index
    parent, section = _section_at(model, path[:-1]), _section_at(model, path)
    if error["type"] == "extra_forbidden" and parent:
        return f"unknown key {key}: {_suggestion(model, parent, key)}"
    field = parent.model_fields.get(str(path[-1])) if parent else None
    about = f" ({field.description})" if field and field.description else ""
    if error["type"] == "missing":
        return f"{key} is missing: add it{about}"
    if section is not None:
        return f"{key} is {value}: must be a section with the keys {', '.join(section.model_fields)}"
    return f"{key} is {value}: {message}{about}; change it in the file or with {option}=..."


def _suggestion(model: type[BaseModel], parent: type[BaseModel], key: str) -> str:
    before, _, last = key.rpartition(".")
    near = difflib.get_close_matches(last, parent.model_fields, n=1)
    if near:
        return f"did you mean {'.'.join(filter(None, [before, near[0]]))}?"
    elsewhere = [known for known, _ in options_of(model) if known.rpartition(".")[2] == last]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"allowed keys here: {', '.join(parent.model_fields)}"
