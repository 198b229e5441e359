"""A text that others will read on a terminal is one line that shows as it is stored, wherever it comes from."""

import json
from pathlib import Path

import pytest

from curriculumdp.config.config import config_from
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.printable import printable, require_line
from curriculumdp.release.certificate import (
    Certificate,
    CertificateError,
    certificate_bytes,
    parse_certificate,
)
from curriculumdp.release.verify import read_certificate
from tests.support.runs import tiny
from tests.support.tiny_release import write_release

# Controls (C0, DEL, C1), separators, other spaces, marks of direction, without width, surrogates, without a letter.
HIDDEN = [
    *(*range(0x20), *range(0x7F, 0xA1), 0xAD, 0x2028, 0x2029, 0x2000, 0x202F, 0x3000, 0x061C),
    *(*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0x200B, 0x2010), 0x2060, 0xFEFF, 0xFFF9),
    *(0xD800, 0xDFFF, 0xE000, 0xFFFE, 0xE0001, 0x10FFFF, 0x3164, 0x2800, 0x034F, 0x115F, 0xFFA0),
    *(*range(0xFE00, 0xFE10), 0x180B, 0x180D, 0x180F, 0x16FE4, 0x1D159, 0xE0100, 0xE01EF),
]
LEGAL = ["one image", "alle Bilder einer Patientin", "toutes les images d'un·e élève", "一位病人的所有图像",
         "تمام تصاویر", "все снимки", "μ ≤ 3 & <b>", "e\u0301"]  # fmt: skip
PLACES = ["guarantee.unit", "guarantee.public.initial_weights", "guarantee.events.0.name", "accounting.accountant",
          "accounting.opacus", "versions.torch"]  # fmt: skip


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return read_certificate(write_release(tmp_path_factory.mktemp("run") / "release"))


def put(content: bytes, path: str, value: str) -> bytes:
    whole = json.loads(content)
    *parents, last = path.split(".")
    place = whole
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return (json.dumps(whole, indent=2) + "\n").encode()


@pytest.mark.parametrize("code", HIDDEN, ids=lambda code: f"U+{code:04X}")
def test_what_a_terminal_would_show_otherwise_is_refused_everywhere(code: int, tmp_path: Path) -> None:
    text = f"one image{chr(code)}origin: signed by us"
    with pytest.raises(ValueError, match=f"U\\+{code:04X}"):
        require_line(text)
    assert "\n" not in printable(text)
    assert printable(text).isprintable()
    values = tiny(tmp_path).resolved()
    for section, key in (("data", "unit"), ("data", "name"), (None, "init_from"), (None, "name")):
        changed = {**values, section: values[section] | {key: text}} if section else values | {key: text}
        with pytest.raises(ConfigError) as refused:
            config_from(changed, "config")
        assert f"{section}.{key}".removeprefix("None.") in str(refused.value)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("place", PLACES)
def test_no_text_of_a_certificate_can_forge_a_line(certificate: Certificate, place: str) -> None:
    content = certificate_bytes(certificate)
    for code in HIDDEN:
        with pytest.raises(CertificateError) as refused:
            parse_certificate(put(content, place, f"one image{chr(code)}origin: signed by us"))
        assert str(refused.value).isprintable()
        assert "one form" not in str(refused.value), "it was refused for its form alone"


@pytest.mark.parametrize("text", LEGAL)
def test_letters_of_any_script_and_ordinary_spaces_are_taken(text: str, tmp_path: Path) -> None:
    assert require_line(text) == printable(text) == text
    values = tiny(tmp_path).resolved()
    assert config_from(values | {"data": values["data"] | {"unit": text}}, "config").data.unit == text


@pytest.mark.parametrize("text", ["", " ", "   "])
def test_a_text_of_nothing_is_refused(text: str, tmp_path: Path) -> None:
    values = tiny(tmp_path).resolved()
    with pytest.raises(ConfigError, match=r"data\.unit"):
        config_from(values | {"data": values["data"] | {"unit": text}}, "config")


def test_text_that_fills_a_line_with_spaces_is_refused_and_shown_with_single_ones() -> None:
    """Padded to the width of a terminal it would go on as a line of its own."""
    forged = "one image" + " " * 60 + "cost, recomputed: PLD 0.001"
    with pytest.raises(ValueError, match="two spaces in a row"):
        require_line(forged)
    assert printable(forged) == "one image cost, recomputed: PLD 0.001"
