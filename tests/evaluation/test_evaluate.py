"""An evaluation puts public and private figures where they belong, and says what it compared."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curriculumdp.data.sources import DataError
from curriculumdp.evaluation.evaluate import Request, evaluate_release
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.evaluation.record import private_folder, public_folder, read_record, table
from curriculumdp.evaluation.released import draw_images, load_set, read_released
from tests.support.evaluated_run import CLASSES, digits, write_npz

CPU = torch.device("cpu")
Evaluate = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def place(run: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    return Path(shutil.copytree(run, tmp_path / "tiny"))


@pytest.fixture
def real(tmp_path: Path) -> str:
    return write_npz(tmp_path / "real.npz", digits("test", CLASSES))


@pytest.fixture
def evaluate(place: Path, real: str, quick: None) -> Evaluate:
    def run_it(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        request = Request(real, 40, 2, ("logistic",), CPU, **options)
        return evaluate_release(read_released(place / "release"), request, place, lambda text: None)

    return run_it


def test_figures_against_public_images_are_public(place: Path, evaluate: Evaluate) -> None:
    public, private = evaluate(public_real=True)
    assert private == {}
    assert not private_folder(place).exists()
    assert {path.name for path in public_folder(place).iterdir()} == {"evaluation.json", "utility.png"}
    record = json.loads((public_folder(place) / "evaluation.json").read_text())
    assert "May be shared" in record["privacy"]
    assert {key: record[key] for key in public} == public
    assert len(record["utility"]["logistic"]["values"]) == record["synthetic"]["seeds"] == 2
    assert set(record["fidelity"]) == {"network", "compared_with", "fd", "kid", "precision", "recall"}
    assert "one half of: npz" in record["fidelity"]["network"]["trained_on"]
    assert record["fidelity"]["compared_with"] == record["real"]["images"] / 2 == 48


def test_figures_against_images_that_nobody_declared_public_are_private(
    place: Path, evaluate: Evaluate
) -> None:
    public, private = evaluate()
    assert public == {}
    assert not public_folder(place).exists()
    assert stat.S_IMODE(private_folder(place).stat().st_mode) == 0o700
    record = json.loads((private_folder(place) / "evaluation.json").read_text())
    assert record["privacy"].startswith("PRIVATE")
    assert record["utility"] == private["utility"]


def test_what_the_training_set_says_is_private_though_the_test_set_is_public(
    place: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    train = write_npz(tmp_path / "train.npz", digits("train", CLASSES))
    public, private = evaluate(public_real=True, train=train)
    assert set(public) == {"real", "synthetic", "utility", "fidelity"}
    assert set(private) == {"reference", "fidelity_to_training", "memorisation"}
    assert private["reference"]["utility"]["logistic"]["mean"] > 0.95
    assert private["reference"]["fidelity"]["fd"] < public["fidelity"]["fd"]["mean"]
    names = {path.name for path in private_folder(place).iterdir()}
    assert names == {"evaluation.json", "distances.png", "neighbours.png"}
    assert "memorisation" not in (public_folder(place) / "evaluation.json").read_text()
    text = table(public, private)
    assert text.endswith("Must not be shared.")
    assert "on the real training set" in text


def test_a_feature_network_of_the_training_set_makes_all_figures_private(
    place: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    train = write_npz(tmp_path / "train.npz", digits("train", CLASSES))
    public, private = evaluate(public_real=True, train=train, features=train)
    assert public == {}
    assert private["fidelity"]["network"]["sha256"]
    assert not public_folder(place).exists()


def test_an_evaluation_replaces_the_one_before(place: Path, evaluate: Evaluate) -> None:
    evaluate(public_real=True)
    evaluate()
    assert list(public_folder(place).iterdir()) == []
    evaluate(public_real=True)
    assert list(private_folder(place).iterdir()) == []


def test_paths_stay_out_of_a_record(place: Path, evaluate: Evaluate, real: str) -> None:
    evaluate(public_real=True)
    assert str(Path(real[4:]).parent) not in (public_folder(place) / "evaluation.json").read_text()


def test_a_feature_network_of_another_set_leaves_the_whole_real_set_to_compare(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    other = write_npz(tmp_path / "public.npz", digits("train", CLASSES).at_most(60))
    public, _ = evaluate(public_real=True, features=other)
    assert public["fidelity"]["compared_with"] == public["real"]["images"] == 96
    assert public["fidelity"]["network"]["trained_on"] == "60 images (npz)"


def test_a_record_of_another_release_is_refused(place: Path, evaluate: Evaluate) -> None:
    evaluate(public_real=True)
    other = {"name": "tiny", "certificate_sha256": "0" * 64}
    with pytest.raises(
        EvaluationError, match=r"belongs to another release than the run's: run launch/evaluate\.py again"
    ):
        read_record(public_folder(place), other)
    (public_folder(place) / "evaluation.json").write_text("{}")
    with pytest.raises(EvaluationError, match="not an evaluation record"):
        read_record(public_folder(place), other)


def test_drawn_images_depend_on_the_seed_alone_and_have_all_classes(run: Path) -> None:
    released = read_released(run / "release")
    one, again, other = (draw_images(released, 7, seed) for seed in (0, 0, 1))
    assert one.images.shape == (7, 1, 8, 8)
    assert one.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert np.array_equal(one.images, again.images)
    assert not np.array_equal(one.images, other.images)


def test_digits_are_known_to_be_public() -> None:
    assert Request("digits", 1, 1, (), CPU).real_is_public
    assert not Request("npz:x", 1, 1, (), CPU).real_is_public


@pytest.mark.parametrize("text", ["mnist", "npz", "npz:", "digits:/x", "http://x"])
def test_a_set_that_is_none_is_refused_in_one_line(run: Path, text: str) -> None:
    with pytest.raises(
        EvaluationError,
        match="is not a set of images: use digits, idx:PATH, npz:PATH, medmnist:PATH or folder:PATH",
    ):
        load_set(text, read_released(run / "release"), "test")


def test_a_set_of_other_classes_is_refused(run: Path, test_digits: LabelledSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels range from 0 to 9 but data\.classes = 3"):
        load_set(write_npz(tmp_path / "ten.npz", test_digits), read_released(run / "release"), "test")


def test_a_folder_without_a_config_is_no_release(place: Path) -> None:
    (place / "release" / "training_config.yaml").write_text("name: tiny\n")
    with pytest.raises(EvaluationError, match="is not a training config"):
        read_released(place / "release")
