"""The report in a real browser, as wide as a desk and as a phone: whole pictures, nothing cut, letters to read."""

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curriculumdp.plots import utility_plot
from curriculumdp.report.page import POLICY, columns, document, facts, html, picture, section, table
from curriculumdp.report.report import write_reports

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
WIDTHS = (1280, 390)
LOOK = """<script>addEventListener("load", () => {
  const pictures = [...document.images], texts = [...document.querySelectorAll("p,li,td,th,span,figcaption,code")]
  const found = {
    broken: pictures.filter(p => !p.complete || !p.naturalWidth || !p.clientWidth).length,
    pictures: pictures.length, width: innerWidth, over: document.documentElement.scrollWidth - innerWidth,
    letters: Math.min(...texts.map(t => parseFloat(getComputedStyle(t).fontSize))),
  }
  parent.document.documentElement.setAttribute("data-found", Object.entries(found).map(e => e.join("=")).join(" "))
})</script>"""


def chromium(folder: Path, page: Path, width: int, *options: str) -> str:
    """What headless Chromium prints for a page; every name it might look up does not exist."""
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
         f"--window-size={width},6000", *options, page.as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def look(folder: Path, page: Path, width: int) -> dict[str, float]:
    """What a script finds in the page, whose own policy is kept but for that script.

    The page stands in a frame: where it prints a page instead of its picture, Chromium's windows are 500 px or more.
    """
    own, text = html(POLICY), page.read_text()
    assert own in text
    looked = text.replace(own, f"{own}; script-src 'unsafe-inline'".replace("'", "&#x27;"))
    frame = folder / "frame.html"
    inside = escape(looked.replace("</main>", f"</main>{LOOK}"))
    frame.write_text(
        f'<meta charset="utf-8"><iframe width="{width}" height="6000" style="border:0" srcdoc="{inside}">'
    )
    found = re.search(r'data-found="([^"]*)"', chromium(folder, frame, 1400, "--dump-dom"))
    assert found
    return {key: float(value) for key, value in (pair.split("=") for pair in found[1].split())}


@pytest.mark.parametrize("width", WIDTHS)
def test_both_editions_are_whole_and_readable(run: Path, tmp_path: Path, width: int) -> None:
    for page in write_reports(Path(shutil.copytree(run, tmp_path / "tiny"))):
        found = look(tmp_path, page, width)
        assert found["width"] == width
        assert found["broken"] == 0
        assert found["pictures"] >= 5
        assert found["over"] <= 0, "the page scrolls sideways"
        assert found["letters"] >= 12
        chromium(tmp_path, page, width, f"--screenshot={tmp_path / 'shot.png'}")
        with Image.open(tmp_path / "shot.png") as shot:
            assert shot.size == (width, 6000)
            assert np.asarray(shot.convert("L")).std() > 10


def test_wide_tables_and_long_words_do_not_widen_the_page(tmp_path: Path) -> None:
    wide = table([f"column {i}" for i in range(20)], [["row", *("0.123456 ± 0.1" for _ in range(19))]])
    plot = picture(utility_plot({"cnn": {"mean": 0.5, "values": [0.5]}}), "half of the images right")
    page = tmp_path / "page.html"
    page.write_text(document("wide", section("s", wide, columns(facts([("a" * 60, "b" * 200)]), plot))))
    assert look(tmp_path, page, 390)["over"] <= 0


def test_the_look_sees_a_broken_picture(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    whole = document(
        "broken", section("s", picture(utility_plot({"cnn": {"mean": 0.5, "values": [0.5]}}), "half"))
    )
    page.write_text(re.sub(r"base64,.{400}", "base64,AAAA", whole, count=1))
    assert look(tmp_path, page, 390)["broken"] == 1
