"""A self-contained HTML page: text that cannot become markup, pictures embedded in the file, nothing fetched.

A release is read before it is trusted, so all text goes through `html`, and only its result is markup. The page's
own policy forbids scripts and all connections.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Html(str):
    """Markup, created only by the functions of this file."""

    __slots__ = ()


def html(value: object) -> Html:
    """Return `value` as markup: escaped, unless it is already markup."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *inner: object, **attributes: object) -> Html:
    """Return an element; `class_` means class, and underscores in attribute names become dashes."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{''.join(html(part) for part in inner)}</{name}>")


def paragraph(*inner: object) -> Html:
    """Return a paragraph."""
    return tag("p", *inner)


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Return a table of names and values in two columns."""
    return tag(
        "table", *(tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows),
        class_="facts",
    )  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """Return a table that scrolls sideways on narrow screens; the first column names the row."""
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows
    ]
    inner = tag(
        "table",
        tag("caption", caption) if caption else Html(""),
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
        tag("tbody", *body),
    )
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption or head[0])


def picture(png: bytes, alt: str, caption: object = "", kind: str = "plot") -> Html:
    """Return an embedded PNG; `alt` describes it for those who cannot see it. kind: plot or pixels."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        width, height = opened.size
    data = base64.b64encode(png).decode()
    image = Html(
        f'<img class="{escape(kind)}" src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">'
    )
    return tag("figure", image, tag("figcaption", caption) if caption else Html(""))


def section(title: str, *parts: object) -> Html:
    """Return a section of the page with its heading."""
    return tag("section", tag("h2", title), *parts)


def columns(*parts: object) -> Html:
    """Return the parts side by side where there is room."""
    return tag("div", *parts, class_="columns")


def document(title: str, *body: object) -> str:
    """Return the complete page."""
    head = Html(
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
    )
    return f'<!doctype html>\n<html lang="en">{tag("head", head)}{tag("body", tag("main", *body))}</html>\n'
