"""A self-contained HTML page: text that cannot become markup, pictures inside the file, nothing fetched.

A release is read before it is trusted, so every text goes through `html`; only what it returns is markup. The
page's own policy forbids scripts and every connection.
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
    """Markup, made by the functions of this file."""

    __slots__ = ()


def html(value: object) -> Html:
    """`value` as markup: escaped, unless it is markup already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *inner: object, **attributes: object) -> Html:
    """An element; `class_` stands for class, and an underscore in an attribute's name for a dash."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{''.join(html(part) for part in inner)}</{name}>")


def paragraph(*inner: object) -> Html:
    return tag("p", *inner)


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Names and values in two columns."""
    return tag(
        "table", *(tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows),
        class_="facts",
    )  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """A table that scrolls sideways where the screen is narrower; the first column names the row."""
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
    """A PNG inside the page; `alt` says what it shows to those who cannot see it. kind: plot or pixels."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        width, height = opened.size
    data = base64.b64encode(png).decode()
    image = Html(
        f'<img class="{escape(kind)}" src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">'
    )
    return tag("figure", image, tag("figcaption", caption) if caption else Html(""))


def section(title: str, *parts: object) -> Html:
    """A part of the page under its heading."""
    return tag("section", tag("h2", title), *parts)


def columns(*parts: object) -> Html:
    """Parts side by side where there is room."""
    return tag("div", *parts, class_="columns")


def document(title: str, *body: object) -> str:
    """The whole page."""
    head = Html(
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style>"
    )
    return f'<!doctype html>\n<html lang="en">{tag("head", head)}{tag("body", tag("main", *body))}</html>\n'
