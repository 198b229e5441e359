"""The meaning of labels is fixed when a run starts, and goes with everything that leaves it."""

import io
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
from PIL import Image

from curriculumdp.config.config import Config, load_config
from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.curriculum.declared import load_shared
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release.agreement import config_problems
from curriculumdp.release.sample import RequestError, sample_release
from curriculumdp.release.verify import read_certificate
from curriculumdp.world import one_process
from tests.support.refused import refusal
from tests.support.runs import finish, in_child, kill_at
from tests.support.small_run import small, without_solving

NAMES = ["1", "2", "10"]


@pytest.fixture(autouse=True)
def solved() -> Iterator[None]:
    with without_solving():
        yield


def pictures(root: Path) -> Path:
    """Thirty pictures in three folders, whose order as text is not that of their numbers."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def run_of(place: Path, **changes: Any) -> Config:
    data = {"data__source": "image_folder", "data__units": 30, "data__name": None, "data__ledger": None}
    return small(place / "run", place / "data", checkpoint={"every": 1}, **data, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("named")
    pictures(place / "data")
    with without_solving():
        finish(run_of(place))
    return place


def test_a_release_says_what_its_labels_mean_wherever_it_is_looked_at(finished: Path) -> None:
    release = finished / "run" / "release"
    certified = json.loads((release / "privacy.json").read_text())
    assert certified["guarantee"]["public"]["id2label"] == NAMES
    assert "names of the classes" in certified["statement"]["public"]
    assert yaml.safe_load((release / "training_config.yaml").read_text())["data"]["class_names"] == NAMES
    assert '  2: "10",' in (release / "README.md").read_text()
    guarantee = read_certificate(release).guarantee
    assert config_problems(release, guarantee) == []
    public = guarantee.public.model_copy(update={"id2label": tuple(reversed(NAMES))})
    other = guarantee.model_copy(update={"public": public})
    assert "data.class_names is" in config_problems(release, other)[0]
    pipeline = DiffusionPipeline.from_pretrained(str(release))
    assert pipeline.unet.config["_id2label"] == {"0": "1", "1": "2", "2": "10"}


@pytest.mark.parametrize("declared", [False, True])
def test_names_that_only_the_data_give_are_said_to_become_public_before_anything_begins(
    tmp_path: Path, declared: bool
) -> None:
    """One person's folder, or label, may be the only one of its name."""
    pictures(tmp_path / "data")
    config = run_of(tmp_path, **({"data__class_names": NAMES} if declared else {}))
    with redirect_stdout(io.StringIO()) as console:
        images = load_shared(config, one_process(), tmp_path / "cache", tmp_path / "pending", lambda: False)
    assert images is not None
    said = [line for line in console.getvalue().splitlines() if "PUBLIC" in line]
    assert len(said) == (0 if declared else 1)
    assert declared or str(NAMES) in said[0]


def test_synthetic_images_carry_the_names_and_can_be_read_back_by_them(
    finished: Path, tmp_path: Path
) -> None:
    release = finished / "run" / "release"
    path, _ = sample_release(release, 4, tmp_path, labels="10,2", steps=2, png=True)
    with np.load(path) as kept:
        assert kept["labels"].tolist() == [2, 1, 2, 1]
        assert kept["class_names"].tolist() == NAMES
    assert (tmp_path / "png" / "train" / "metadata.csv").read_text().split() == [
        "file_name,label", "000000.png,10", "000001.png,2", "000002.png,10", "000003.png,2",
    ]  # fmt: skip
    with pytest.raises(RequestError, match=r"label '0' is not a class: the release has classes named"):
        sample_release(release, 4, tmp_path, labels="0,1,2", steps=2)


def test_the_finished_run_is_found_again_without_its_data(finished: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(place / "data")
    assert run_curriculum(run_of(place), one_process()).release == place / "run" / "release"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    pictures(tmp_path / "data")

    def work() -> None:
        kill_at(Ledger, "charge", 3, after=True)
        finish(run_of(tmp_path))

    assert in_child(work) == -signal.SIGKILL
    return tmp_path


def test_a_renamed_folder_is_refused_by_name_and_renamed_back_goes_on(killed: Path) -> None:
    (killed / "data" / "10").rename(killed / "data" / "ten")
    said = refusal(lambda: finish(run_of(killed)))
    assert "['1', '2', 'ten']" in said
    assert "['1', '2', '10']" in said
    (killed / "data" / "ten").rename(killed / "data" / "10")
    assert finish(run_of(killed)).is_dir()


def test_two_folders_that_swapped_names_are_other_data(killed: Path) -> None:
    for old, new in (("1", "x"), ("2", "1"), ("x", "2")):
        (killed / "data" / old).rename(killed / "data" / new)
    assert "images, labels or units are not those" in refusal(lambda: finish(run_of(killed)))


@pytest.mark.parametrize("lost", [False, True])
def test_names_edited_in_the_runs_folder_are_refused_and_lost_ones_are_found_again(
    killed: Path, lost: bool
) -> None:
    file = killed / "run" / "private" / "config.json"
    if lost:
        file.unlink()
        assert finish(run_of(killed)).is_dir()
        assert json.loads(file.read_text())["data"]["class_names"] == NAMES
        return
    saved = json.loads(file.read_text())
    saved["data"]["class_names"] = ["2", "1", "10"]
    file.write_text(json.dumps(saved))
    before = (killed / "run" / "private" / "ledger.jsonl").read_bytes()
    assert "config" in refusal(lambda: finish(run_of(killed)))
    assert (killed / "run" / "private" / "ledger.jsonl").read_bytes() == before


def test_another_order_of_the_names_is_refused_and_the_same_one_is_not(killed: Path) -> None:
    other = run_of(killed, data__class_names=["1", "10", "2"])
    assert "data.class_names was ['1', '2', '10']" in refusal(lambda: finish(other))
    assert finish(run_of(killed, data__class_names=NAMES)).is_dir()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("[a, b]", "has 2 names but data.classes = 3"),
        ("[a, b, a]", "has 'a' twice"),
        ("[a, b, 'c ']", "without spaces around it"),
        ('[a, b, "U\\u0308"]', "form NFC"),
        ('[a, b, "x\\ny"]', "one line of printable text"),
        ("[0, 1, 2]", "data.class_names"),
        ("abc", "data.class_names"),
    ],
)
def test_names_that_cannot_name_the_classes_are_refused(tmp_path: Path, names: str, words: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_of(tmp_path).resolved()))
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "run.yaml", [f"data.class_names={names}"])


def test_stock_diffusers_without_labels_draws_no_class_that_dp_sgd_never_trained(finished: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(str(finished / "run" / "release"))
    assert isinstance(pipeline, ConsistencyModelPipeline)
    torch.manual_seed(0)
    drawn = pipeline.prepare_class_labels(500, "cpu")
    assert set(drawn.tolist()) == {0, 1, 2}
    assert pipeline.unet.class_embedding.weight.shape[0] == 3
    card = (finished / "run" / "release" / "README.md").read_text()
    assert "draws each image's class at random" in card


def test_a_null_class_that_dp_sgd_trained_is_released_and_said(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    release = finish(run_of(tmp_path, private__label_dropout=0.2))
    pipeline = DiffusionPipeline.from_pretrained(str(release))
    assert pipeline.unet.config.num_class_embeds == 4
    assert "label 3 is among them: it means no class" in " ".join((release / "README.md").read_text().split())
