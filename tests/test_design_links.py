"""Every section of the design that a comment, a docstring or a page cites is a heading of docs/design.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DESIGN = ROOT / "docs" / "design.md"
CITED = re.compile(r"\bdesign,? (?:§|section )(\d)|\b(D\d(?:\.\d)?)\b(?![\w.']*\s*=)")
HEADINGS = {
    match[1].rstrip(".") for match in re.finditer(r"^#+ (D\d\.\d|D\d\.|\d\.)", DESIGN.read_text(), re.M)
}
FILES = [
    *(
        file
        for room in ("curriculumdp", "kernels", "launch", "bench")
        for file in (ROOT / room).rglob("*.py")
    ),
    *(ROOT / "tests" / "mutations").glob("*.py"),
    *(
        file
        for room in (".", "docs", "kernels", "curriculumdp/privacy")
        for file in (ROOT / room).glob("*.md")
    ),
]


def citations(text: str) -> list[str]:
    """Sections that are cited where the design is spoken of: "design D3, steps 1 to 3", "(D3.4, D4)", "design §3"."""
    return [
        found
        for line in text.splitlines()
        if "design" in line or re.search(r"\(D\d", line)
        for match in CITED.finditer(line)
        if (found := match[1] or match[2])
    ]


def test_the_design_has_its_sections() -> None:
    assert {"1", "2", "3", "4", "5", "6", "D1", "D2", "D3", "D4", "D5"} <= HEADINGS
    assert {f"D3.{number}" for number in range(1, 7)} <= HEADINGS


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_cited_section_exists(file: Path) -> None:
    assert not [cited for cited in citations(file.read_text()) if cited not in HEADINGS]


def test_citations_are_found() -> None:
    found = [cited for file in FILES for cited in citations(file.read_text())]
    assert len(found) >= 15
    assert citations("as design D3.9 has it (design §7)") == ["D3.9", "7"]
