"""What an evaluation is made on: classes meant by name, no image that was trained on, no class behind another."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curriculumdp.data.images import DataError
from curriculumdp.data.sources import load_images
from curriculumdp.evaluation import evaluate as module
from curriculumdp.evaluation import utility
from curriculumdp.evaluation.evaluate import evaluate_release
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.evaluation.overlap import training_set_of
from curriculumdp.evaluation.record import private_folder, public_folder, table
from curriculumdp.evaluation.released import load_set, read_released
from curriculumdp.evaluation.request import Request, requested
from curriculumdp.release.certificate import PublicFacts
from tests.support.evaluated_run import CLASSES, SETTINGS, digits, write_npz, write_run
from tests.support.tiny_release import guarantee

CPU = torch.device("cpu")
Evaluate = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


def named_run(folder: Path, names: tuple[str, ...] | None) -> Path:
    """A run whose release names its classes."""
    public = PublicFacts(units=1437, classes=CLASSES, image_shape=(1, 8, 8), id2label=names)
    config = SETTINGS | {"data": SETTINGS["data"] | ({} if names is None else {"class_names": list(names)})}
    return write_run(folder, config, guarantee=guarantee(public=public))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return named_run(tmp_path_factory.mktemp("named") / "run", ("cat", "dog", "ant"))


@pytest.fixture
def place(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "tiny"))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def evaluate(place: Path, quick: None, said: list[str]) -> Evaluate:
    def run_it(real: str, count: int = 12, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        request = Request(real, count, 1, ("logistic",), CPU, **options)
        return evaluate_release(read_released(place / "release"), request, place, said.append)

    return run_it


def folders(root: Path, names: list[str]) -> Path:
    """A picture per class, of the value of its name's place, 20 apart; and a table of them beside."""
    rows = ["path,label"]
    for value, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("L", (8, 8), 20 * value).save(root / name / "a.png")
        rows.append(f"{name}/a.png,{name}")
    (root.parent / "table.csv").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize("by_table", [False, True])
def test_folders_and_tables_of_a_test_set_go_by_the_names_of_the_release(
    named: Path, tmp_path: Path, by_table: bool
) -> None:
    root = folders(tmp_path / "real", ["ant", "cat", "dog"])
    asked = (str(root), tmp_path / "table.csv") if by_table else (f"folder:{root}", None)
    found = load_set(asked[0], read_released(named / "release"), "test", asked[1])
    values = (found.images[:, 0, 0, 0] // 20).tolist()
    assert dict(zip(values, found.labels.tolist(), strict=True)) == {
        0: 2,
        1: 0,
        2: 1,
    }


@pytest.mark.parametrize(
    ("names", "by_table"),
    [(["Ant", "cat", "dog"], False), (["Ant", "cat", "dog"], True), (["0", "1", "2"], False)],
)
def test_other_names_than_the_release_has_are_refused(
    named: Path, tmp_path: Path, names: list[str], by_table: bool
) -> None:
    root = folders(tmp_path / "real", names)
    with pytest.raises(DataError, match=r"'cat', 'dog', 'ant'") as caught:
        load_set(
            f"folder:{root}",
            read_released(named / "release"),
            "test",
            tmp_path / "table.csv" if by_table else None,
        )
    assert names[0] in str(caught.value)


def test_a_release_without_names_takes_folders_named_by_number_alone(run: Path, tmp_path: Path) -> None:
    released = read_released(run / "release")
    found = load_set(f"folder:{folders(tmp_path / 'a' / 'real', ['2', '1', '0'])}", released, "test")
    assert [20 * (2 - label) for label in found.labels] == found.images[:, 0, 0, 0].tolist()
    with pytest.raises(DataError, match=r"'zero'.*'0', '1', '2'"):
        load_set(f"folder:{folders(tmp_path / 'b' / 'real', ['zero', 'one', 'two'])}", released, "test")


def test_a_table_without_a_folder_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is not a folder, so it has no table"):
        load_set("digits", read_released(run / "release"), "test", tmp_path / "table.csv")


def trained_on(place: Path, images: LabelledSet) -> None:
    """The run in `place` says that it was trained on these images."""
    write_npz(place / "train.npz", images)
    data = {"source": "npz", "path": str(place / "train.npz"), "units": len(images), "unit": "one image"}
    (place / "private" / "config.json").write_text(
        json.dumps(
            {"data": data | {"classes": CLASSES, "channels": 1, "size": 8, "csv": None, "window": None}}
        )
    )


def test_a_test_set_that_is_the_training_set_in_another_order_is_refused(
    place: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = digits("train", CLASSES)
    trained_on(place, train)
    monkeypatch.setattr(module, "draw_images", lambda *_: pytest.fail("sampled first"))
    some = train.take(np.random.default_rng(1).permutation(len(train))[:100])
    with pytest.raises(
        EvaluationError, match=r"100 of 100 test images are in the training set.*--allow-training"
    ):
        evaluate(write_npz(tmp_path / "real.npz", some))


def test_a_release_alone_is_held_against_the_training_set_that_is_named(
    place: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    train = write_npz(tmp_path / "train.npz", digits("train", CLASSES))
    shutil.rmtree(place / "private")
    with pytest.raises(EvaluationError, match="test images are in the training set"):
        evaluate(train, train=train)


def test_a_part_of_the_training_set_is_counted_and_the_count_is_private(
    place: Path, evaluate: Evaluate, tmp_path: Path, said: list[str]
) -> None:
    train, test = digits("train", CLASSES), digits("test", CLASSES)
    trained_on(place, train)
    both = LabelledSet(
        np.concatenate([test.images, train.images[:7]]),
        np.concatenate([test.labels, train.labels[:7]]),
        "both",
    )
    public, private = evaluate(write_npz(tmp_path / "real.npz", both), public_real=True)
    assert private == {"overlap": {"images": len(both), "in_training": 7}}
    assert any(line.startswith(f"PRIVATE: 7 of {len(both)}") for line in said)
    assert "in_training" not in (public_folder(place) / "evaluation.json").read_text()
    assert "in_training" in (private_folder(place) / "evaluation.json").read_text()
    assert f"7 of {len(both)} test images" in table(public, private)


def test_training_images_may_be_allowed_and_the_record_says_so(
    place: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    train = digits("train", CLASSES)
    trained_on(place, train)
    real = write_npz(tmp_path / "real.npz", train.at_most(60))
    public, private = evaluate(real, public_real=True, allow_training_images=True)
    assert public["real"]["training_images_allowed"] is True
    assert private["overlap"]["in_training"] == 60
    assert "were allowed" in table(public, private)


def test_a_training_set_that_cannot_be_read_is_said_and_stops_nothing(
    evaluate: Evaluate, tmp_path: Path, said: list[str]
) -> None:
    evaluate(write_npz(tmp_path / "real.npz", digits("test", CLASSES)))
    assert said[0].startswith("not checked whether test images were trained on")


CONVERTED: dict[str, dict[str, Any]] = {
    "stretched": {"fit": "stretch"},
    "padded": {"fit": "pad", "background": 7},
    "grey": {"to_grey": True},
    "validation": {"source": "medmnist", "split": "val"},
}


@pytest.mark.parametrize("how", CONVERTED)
def test_a_runs_own_set_is_read_as_the_run_read_it_and_from_its_cache(
    run: Path, place: Path, tmp_path: Path, how: str, said: list[str]
) -> None:
    """Converted otherwise, no image would be found again, and the figures would look honest."""
    rng, colours = np.random.default_rng(0), (3,) if how == "grey" else ()
    images, labels = rng.integers(0, 256, (6, 9, 12, *colours), dtype=np.uint8), np.arange(6) % CLASSES
    arrays = {"images": images, "labels": labels}
    if how == "validation":
        arrays = {f"{part}_{name}": value for part in ("train", "val") for name, value in arrays.items()}
        arrays["train_images"] = 255 - images
    np.savez(tmp_path / "train.npz", **arrays)
    data = {"source": "npz", "path": str(tmp_path / "train.npz"), "units": 6, "unit": "one image"}
    data |= {"classes": CLASSES, "channels": 1, "size": 8} | CONVERTED[how]
    part, cache = data.get("split"), place / "private" / "cache"
    trained = load_images(
        **{key: value for key, value in data.items() if key != "split"}, part=part, cache=cache
    )
    (place / "private" / "config.json").write_text(json.dumps({"data": {"split": None, "csv": None} | data}))
    before = (cache / "images-train").stat().st_mtime_ns
    found = training_set_of(read_released(place / "release"), said.append)
    assert said == []
    assert found is not None
    assert np.array_equal(found.images, trained.images)
    assert (cache / "images-train").stat().st_mtime_ns == before


def test_a_classifier_that_always_gives_the_commonest_class_does_not_look_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = np.array([0] * 95 + [1] * 5)
    real = LabelledSet(np.zeros((100, 1, 8, 8), np.uint8), labels, "rare")
    monkeypatch.setitem(utility.CLASSIFIERS, "constant", lambda _, test, *__: np.zeros(len(test), np.int64))
    train = replace(real, labels=np.arange(100) % 3)
    found = utility.scores("constant", train, real, 0)
    assert (found.accuracy, found.balanced, found.per_class) == (0.95, 0.5, (1.0, 0.0, None))
    assert utility.majority(real) == 0.95
    record = utility.all_over_seeds([found, found], ["common", "rare", "absent"])
    assert record["balanced"]["mean"] == 0.5
    assert record["per_class"] == {"common": 1.0, "rare": 0.0, "absent": None}


def test_a_table_shows_each_class_and_what_the_commonest_one_would_score(
    place: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    public, _ = evaluate(
        write_npz(tmp_path / "real.npz", digits("test", CLASSES)), public_real=True, quick=True
    )
    text = table(public, {})
    assert text.startswith("QUICK")
    assert "balanced over classes" in text
    assert "always the commonest class" in text
    assert set(public["utility"]["logistic"]["per_class"]) == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("count", "kept", "words"),
    [
        (9, 60, "--num is 9: fidelity needs at least 10"),
        (20, 19, "npz: has 19 images: fidelity needs at least 20"),
    ],
)
def test_what_is_too_small_is_refused_before_anything_is_sampled_or_trained(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, kept: int, words: str
) -> None:
    for name in ("draw_images", "train_features"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("worked first"))
    with pytest.raises(EvaluationError, match=words):
        evaluate(write_npz(tmp_path / "real.npz", digits("test", CLASSES).at_most(kept)), count)


def test_one_class_has_fidelity_and_no_utility(tmp_path: Path, quick: None) -> None:
    public = PublicFacts(units=1437, classes=1, image_shape=(1, 8, 8))
    config = SETTINGS | {"data": SETTINGS["data"] | {"classes": 1}}
    place = write_run(tmp_path / "run", config, guarantee=guarantee(public=public))
    real = write_npz(tmp_path / "real.npz", digits("test", 1))
    request = Request(real, 12, 1, ("logistic",), CPU, public_real=True)
    found, _ = evaluate_release(read_released(place / "release"), request, place, lambda _: None)
    assert found["utility"] == {}
    assert found["fidelity"]["fd"]["mean"] > 0
    assert "which way up" in found["fidelity"]["network"]["trained_on"]
    assert "utility: none" in table(found, {})


def test_quick_means_fewer_unless_said_otherwise() -> None:
    options: dict[str, Any] = dict.fromkeys(
        ["real", "num", "seeds", "classifiers", "train", "features", "inception", "csv", "train_csv"]
    )
    options |= {"device": "cpu", "quick": True, "public_real": False, "allow_training_images": False}
    quick = requested(options)
    full = requested(options | {"quick": False})
    assert (quick.count, quick.seeds, quick.classifiers) == (500, 1, ("mlp",))
    assert (full.count, full.seeds, full.quick) == (2000, 3, False)
    assert requested(options | {"num": 40}).count == 40


@pytest.mark.parametrize(
    "options",
    [
        {"fit": "stretch", "to_grey": True},
        {"fit": "pad", "background": 200, "to_grey": True},
        {"fit": "pad", "background": [9, 99, 199], "channels": 3},
        {"source": "medmnist", "split": "val"},
    ],
    ids=["stretched", "padded", "padded in colour", "another split"],
)
def test_the_training_set_is_read_as_the_run_read_it(
    place: Path, tmp_path: Path, said: list[str], options: dict[str, Any]
) -> None:
    """Otherwise its images are not recognised among those of a test set."""
    levels = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), dtype=np.uint8)
    for at, image in enumerate(levels):
        (tmp_path / "set" / "abc"[at % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / "abc"[at % 3] / f"{at}.png")
    path = tmp_path / "set"
    if "split" in options:
        path = tmp_path / "set.npz"
        labels = np.array([[0], [1], [2], [0]])
        np.savez(
            path,
            train_images=levels[::-1, :, :8, 0],
            train_labels=labels,
            val_images=levels[:, :, :8, 0],
            val_labels=labels,
        )
    data = {
        "source": "image_folder",
        "path": str(path),
        "units": 4,
        "classes": 3,
        "channels": 1,
        "size": 8,
    } | options
    as_the_run = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    expected = load_images(part=as_the_run.pop("split", None), **as_the_run)
    (place / "private").mkdir(exist_ok=True)
    (place / "private" / "config.json").write_text(json.dumps({"data": data}))
    found = training_set_of(read_released(place / "release"), said.append)
    assert found is not None, said
    assert np.array_equal(found.images, expected.images)
