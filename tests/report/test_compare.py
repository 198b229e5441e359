"""Runs side by side: what is missing shows as missing, repeats get a mean, unlike networks a remark."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.record import write_record
from curriculumdp.evaluation.released import read_released
from curriculumdp.report.compare import RunFigures, read_run, remarks, table, text_of, write_comparison

ONE = RunFigures("one", "central+warmup+private", 10.0, 1e-5, {"cnn": 0.80}, 4.0, 0.5, "aa", 2.0, "same")
TWO = replace(ONE, name="two", accuracy={"cnn": 0.84}, fd=6.0, hours=4.0)
OTHER = replace(ONE, name="other", epsilon=1.0, accuracy={"cnn": 0.7, "mlp": 0.6}, settings="different")


def test_a_run_is_read_from_its_folder(run: Path) -> None:
    found = read_run(run)
    assert (found.name, found.phases, found.epsilon, found.delta) == (
        "tiny",
        "central+warmup+private",
        6.0,
        1e-4,
    )
    assert found.accuracy == {}
    assert found.fd is None
    assert found.hours == pytest.approx(37 / 3600)


def test_the_same_settings_under_another_name_and_seed_are_repeats(run: Path) -> None:
    settings = json.loads(read_run(run).settings)
    assert "name" not in settings
    assert "seed" not in settings
    assert settings["private"]["sample_rate"] == 0.2


def test_missing_figures_show_as_missing() -> None:
    head, one, bare = table(
        [ONE, replace(ONE, name="bare", accuracy={}, fd=None, kid=None, hours=None, settings="")]
    )
    assert head == ["run", "phases", "ε", "δ", "cnn, %", "FD", "KID", "hours"]
    assert one == ["one", "central+warmup+private", "10", "1e-05", "80.0", "4.00", "0.5000", "2.00"]
    assert bare[4:] == ["–", "–", "–", "–"]


def test_repeats_get_their_mean_and_deviation() -> None:
    rows = table([ONE, OTHER, TWO])
    assert len(rows) == 5
    assert rows[-1][0] == "mean of 2 runs like one"
    assert rows[-1][4] == f"82.0 ± {100 * math.sqrt(0.0008):.1f}"
    assert rows[-1][5] == "–"  # the mlp, which neither has
    assert rows[-1][6] == "5.00 ± 1.41"


def test_remarks_name_what_cannot_be_compared_and_what_is_private() -> None:
    assert remarks([replace(ONE, hours=None)]) == []
    found = remarks([ONE, replace(TWO, network="bb")])
    assert "different feature networks" in found[0]
    assert "hours are PRIVATE" in found[1]


def test_a_distance_is_called_fid_where_every_run_has_it() -> None:
    fid = replace(ONE, distance="FID")
    assert table([fid, replace(ONE, fd=None)])[0][5] == "FID"
    assert table([fid, OTHER])[0][6] == "FD"
    assert "FID and KID" in remarks([fid, replace(fid, network="bb")])[0]


def test_figures_against_private_images_are_called_private(run: Path, tmp_path: Path) -> None:
    """Without this a table of them, the private folders left behind, would look like any other."""
    run = Path(shutil.copytree(run, tmp_path / "tiny"))
    figures = {"utility": {"cnn": {"mean": 0.8}}, "fidelity": {"fd": {"mean": 4.0}, "kid": {"mean": 0.5}}}
    figures["fidelity"]["network"] = {"sha256": "aa"}
    identity = read_released(run / "release").identity()
    for public, private in ((figures, {}), ({}, figures)):
        write_record(run, release=identity, public=public, private=private, pictures={})
        found = read_run(run)
        assert found.accuracy == {"cnn": 0.8}
        said = [line for line in remarks([found]) if "accuracy" in line]
        assert ("PRIVATE" in "".join(said) and "tiny" in "".join(said)) == bool(private)


def test_accuracies_on_different_test_sets_are_neither_listed_nor_averaged_together(tmp_path: Path) -> None:
    runs = [replace(ONE, tested_on="npz, 90 images"), replace(TWO, tested_on="idx, 70 images"), OTHER]
    for work in (lambda: table(runs), lambda: write_comparison(runs, tmp_path / "out")):
        with pytest.raises(EvaluationError, match="one on npz, 90 images; two on idx, 70 images") as caught:
            work()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert table([replace(run, tested_on="npz") for run in (ONE, TWO)])[-1][0] == "mean of 2 runs like one"


def test_distances_in_different_networks_are_left_out(tmp_path: Path) -> None:
    rows = table([ONE, replace(TWO, network="bb")])
    assert {row[5] for row in rows[1:]} == {row[6] for row in rows[1:]} == {"–"}
    assert [row[4] for row in rows[1:3]] == ["80.0", "84.0"]
    assert table([ONE, replace(OTHER, network=None, fd=None, kid=None)])[1][6] == "4.00"


def test_balanced_accuracy_and_the_commonest_class_stand_beside_plain_accuracy() -> None:
    rare = replace(ONE, accuracy={"cnn": 0.925}, balanced={"cnn": 0.61}, majority=0.95)
    assert table([rare])[0][4:6] == ["cnn, %", "cnn balanced, %"]
    assert table([rare])[1][4:6] == ["92.5", "61.0"]
    assert any("commonest class would score 95.0%" in line for line in remarks([rare]))


def test_evaluations_of_unlike_effort_get_a_remark() -> None:
    runs = [replace(ONE, effort="3 x 2000 images"), replace(TWO, effort="1 x 500 images, quick")]
    assert any("evaluations differ (1 x 500 images, quick; 3 x 2000" in line for line in remarks(runs))
    assert not any("evaluations differ" in line for line in remarks([runs[0], runs[0]]))


def test_text_has_columns_of_equal_width() -> None:
    lines = text_of([["a", "bbb"], ["cccc", "d"]]).splitlines()
    assert lines == ["a     bbb", "cccc  d"]


def test_table_figures_and_plot_are_written(tmp_path: Path) -> None:
    paths = write_comparison([ONE, TWO, OTHER], tmp_path / "out")
    assert [path.name for path in paths] == ["compare.csv", "compare.json", "compare.png"]
    with paths[0].open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == table([ONE, TWO, OTHER])
    assert json.loads(paths[1].read_text())["runs"][2]["accuracy"] == {"cnn": 0.7, "mlp": 0.6}
    with Image.open(paths[2]) as picture:
        assert picture.width > 2 * picture.height


def test_a_plot_of_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="none of these runs was evaluated"):
        write_comparison([replace(ONE, accuracy={}, fd=None)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has no release"):
        read_run(tmp_path)
