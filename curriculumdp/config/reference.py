"""The reference of options, docs/options.md, from the options' own descriptions.

python -m curriculumdp.config.reference > docs/options.md
"""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from curriculumdp.config.sections import Options

HEAD = """# Options

A config is one YAML file; `key.path=value` on the command line overrides a setting. This page is generated from the
options' own descriptions (`python -m curriculumdp.config.reference > docs/options.md`). All options are public.

*On resume* says what a changed value means for a run that has begun: **refused**; **fresh** (new keys: steps that are
repeated are charged again); **neutral** (nothing that is released changes).
"""
TABLE = "\n| option | values | default | on resume | meaning |\n|---|---|---|---|---|\n"


def reference() -> str:
    """Return the page as Markdown: the run's own options first, then a table per section."""
    own, sections = [], []
    for name, field in Options.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            own.append(_row(name, field))
        else:
            sections.append((name, section, field))
    parts = [HEAD, "\n## The run\n", TABLE, *own]
    for name, section, field in sections:
        parts += [f"\n## {name}\n\n{_paragraph(section)}{_absent(field)}\n", TABLE, *_rows(name, section)]
    return "".join(parts)


def _rows(prefix: str, section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if inner is None:
            yield _row(f"{prefix}.{name}", field)
        else:
            yield from _rows(f"{prefix}.{name}", inner)


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    resume = extra.get("resume", "refused") if isinstance(extra, dict) else "refused"
    cells = (f"`{name}`", _values(field), _default(field), str(resume), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an option is, or None for a plain value."""
    found = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
    return next((part for part in found if issubclass(part, BaseModel)), None)


def _paragraph(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _absent(field: FieldInfo) -> str:
    return " May be left out (`null`)." if field.default is None else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value == "":
        return "–"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    """Return what the option takes, in a word, with its bounds."""
    kind, bounds = _kind(field.annotation), []
    for rule in _rules(field):
        for sign, attribute in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le")):
            if (bound := getattr(rule, attribute, None)) is not None:
                bounds.append(f"{sign} {bound:.4g}" if isinstance(bound, float) else f"{sign} {bound}")
    return kind + (f" {', '.join(bounds)}" if bounds else "")


def _rules(field: FieldInfo) -> list[Any]:
    nested = [rule for part in get_args(field.annotation) for rule in getattr(part, "__metadata__", ())]
    found = [*field.metadata, *nested]
    inner = [rule for item in found if isinstance(item, FieldInfo) for rule in item.metadata]
    return [*found, *inner]


def _kind(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__)
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if origin is None:
        return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(
            annotation, str(annotation)
        )
    if all(isinstance(part, str | int) for part in parts):
        return " or ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        kinds = [_kind(part) for part in parts if part is not Ellipsis]
        return f"list of: {kinds[0]}" if Ellipsis in parts else f"[{', '.join(kinds)}]"
    return _kind(parts[0])


if __name__ == "__main__":
    print(reference(), end="")
