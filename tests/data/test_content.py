"""Units that show the same picture are counted by content; the operator is warned without the count."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from curriculumdp.curriculum.declared import REPEATS, warn_of_repeats
from curriculumdp.data.content import shared_between_units
from curriculumdp.data.images import ImageSet
from tests.support.runs import tiny


def images_of(values: list[int], units: list[int]) -> ImageSet:
    pixels = np.array(values, np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)
    return ImageSet(pixels, np.zeros(len(values), np.int64), np.array(units), max(units) + 1)


@pytest.mark.parametrize(
    ("values", "units", "shared"),
    [
        ([1, 2, 3], [0, 1, 2], 0),
        ([1, 1, 1, 2], [0, 1, 2, 3], 3),
        ([1, 1, 2], [0, 0, 1], 0),  # one unit's own repeats
        ([1, 1, 1], [0, 0, 1], 3),
    ],
)
def test_a_picture_of_two_units_counts_wherever_it_is(
    values: list[int], units: list[int], shared: int
) -> None:
    assert shared_between_units(images_of(values, units)) == shared


@pytest.mark.parametrize("shown", [False, True])
def test_the_warning_reaches_the_console_and_the_count_only_where_private_metrics_are_shown(
    tmp_path: Path, shown: bool
) -> None:
    config = tiny(tmp_path, logging={"show_private_metrics": shown})
    with redirect_stdout(io.StringIO()) as said:
        warn_of_repeats(tmp_path, config, images_of([7] * 4 + [9], [0, 1, 2, 3, 4]))
    (line,) = said.getvalue().splitlines()
    assert line.startswith("warning: 4 of 5 images" if shown else "warning: some images")
    assert json.loads((tmp_path / REPEATS).read_text()) == {"images_shared_between_units": 4}


def test_different_pictures_warn_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_repeats(tmp_path, tiny(tmp_path), images_of([1, 2], [0, 1]))
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
