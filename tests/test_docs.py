"""The documentation is true: options as the code has them, links that lead somewhere, commands that exist."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from curriculumdp.config.reference import reference

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])


def test_the_page_of_options_is_what_the_options_say() -> None:
    assert (ROOT / "docs/options.md").read_text(encoding="utf-8") == reference(), (
        "run python -m curriculumdp.config.reference > docs/options.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_and_commands_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for command in re.findall(r"(?:launch|bench)/[\w/]+\.(?:py|sh)", text):
        assert (ROOT / command).is_file(), command
    for config in re.findall(r"configs/[\w/]+\.(?:yaml|sbatch)", text):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_options_on_a_page_exist(page: Path) -> None:
    known = set(re.findall(r"^\| `([\w.]+)`", reference(), flags=re.M))
    sections = {name.partition(".")[0] for name in known if "." in name}
    said = set(re.findall(r"`?\b([a-z]+(?:\.[a-z_]+)+)(?:=|`)", page.read_text(encoding="utf-8")))
    for option in said:
        if option.partition(".")[0] in sections and not option.endswith((".py", ".png")):
            assert option in known or any(name.startswith(option + ".") for name in known), option


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs-material, which builds the site, is not installed: pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
