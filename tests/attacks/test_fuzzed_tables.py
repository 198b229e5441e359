"""Whatever a table, a roster or a data set's name says: no file outside is read, and what is wrong is one line."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import strategies as st

from curriculumdp.data.images import DataError
from curriculumdp.data.sources import load_images
from tests.support.fuzz import SPECIAL, examples, fuzz, one_line
from tests.support.runs import finish
from tests.support.small_run import small


def table(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


PATH = st.text("./\\~ab\0%\n\"',é", max_size=12) | st.sampled_from(
    [
        "a/ok.png",
        "./a/ok.png",
        "a/../a/ok.png",
        "../secret.png",
        "a/out.png",
        "out/secret.png",
        "/etc/passwd",
        "C:\\x",
        "a",
        "",
    ]
)


@pytest.mark.parametrize("times", examples(150, 4000))
def test_no_row_of_a_table_leads_out_of_its_folder(tmp_path: Path, times: int) -> None:
    """Files outside hold another colour: no pixel of that one is ever loaded."""
    from PIL import Image

    inside = tmp_path / "images"
    (inside / "a").mkdir(parents=True)
    Image.new("L", (8, 8), 10).save(inside / "a" / "ok.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "secret.png")
    (inside / "a" / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "out").symlink_to(tmp_path)
    cell = st.text('01a,"\n\r\0 é-', max_size=4) | st.sampled_from(["0", "1", "9" * 30, "-1", "1e3", "٣"])
    rows = st.lists(
        st.lists(cell, min_size=1, max_size=2).flatmap(lambda rest: PATH.map(lambda p: [p, *rest])),
        max_size=3,
    )
    head = st.sampled_from(
        [["path", "label"], ["path", "label", "unit"], ["path", "label", "unit", "more"], ["label"], [""]]
    )

    @fuzz(times, head=head, rows=rows, raw=st.none() | st.text(SPECIAL, max_size=40))
    def check(head: list[str], rows: list[list[str]], raw: str | None) -> None:
        text = table([head, *rows]) + (raw or "")
        (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
        try:
            images = load_images(
                source="image_folder", path=str(inside), csv=str(tmp_path / "table.csv"), classes=2, channels=1, size=8,
                units=max(1, len(rows)),
            )  # fmt: skip
            assert images.images.max() <= 10
        except DataError as error:
            one_line(error)


@pytest.mark.parametrize("times", examples(40, 1000))
def test_any_roster_is_taken_or_refused_in_one_line(tmp_path: Path, times: int) -> None:
    import numpy as np

    np.savez(
        tmp_path / "d.npz",
        images=np.zeros((2, 8, 8), np.uint8),
        labels=np.array([0, 1]),
        units=np.array(["a", "b"]),
    )

    @fuzz(times, roster=st.binary(max_size=30) | st.text("ab\n\r\u2028 ", max_size=12).map(str.encode))
    def check(roster: bytes) -> None:
        (tmp_path / "roster").write_bytes(roster)
        try:
            load_images(
                source="npz",
                path=str(tmp_path / "d.npz"),
                roster=str(tmp_path / "roster"),
                classes=2,
                channels=1,
                size=8,
                units=2,
            )
        except DataError as error:
            one_line(error)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/etc", "..", ".", "", "a\0b", "a" * 101, "-a", "é", "a b", "~"]
)
def test_a_data_sets_name_cannot_lead_out_of_the_state_folder(tmp_path: Path, data: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name") as caught:
        finish(small(tmp_path / "run", data, data__name=name, data__ledger=None))
    assert type(caught.value).__module__.startswith("curriculumdp")
    one_line(caught.value)
