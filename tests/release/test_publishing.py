"""What is published says what it is: cards, licence, certificate; and nothing is uploaded unless asked for."""

import csv
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image

from curriculumdp.release import hub
from curriculumdp.release.files import ALLOWED
from curriculumdp.release.hub import HubError, push, require_repo
from curriculumdp.release.sample import sample_release
from curriculumdp.release.terms import TermsError
from curriculumdp.release.verify import verify_release
from tests.support.tiny_release import CONFIG, SampleSettings, write_release

# The metadata keys of the Hub's documentation that our cards use. Only the Hub itself validates a card
# (ModelCard.validate opens a connection); here its metadata are read back as huggingface_hub reads them.
MODEL_KEYS = {"license", "library_name", "pipeline_tag", "tags"}
DATASET_KEYS = {"license", "task_categories", "tags", "configs"}


@pytest.fixture(scope="module")
def published(original: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `--png` writes, of five images."""
    out = tmp_path_factory.mktemp("samples")
    sample_release(original[0], 5, out, png=True, license_="cc-by-4.0")
    return out / "png"


def test_a_folder_of_samples_is_an_imagefolder_with_the_label_of_each_file(published: Path) -> None:
    with (published / "train/metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["0", "1", "2", "0", "1"]
    assert sorted(path.name for path in (published / "train").iterdir()) == sorted(
        [*(row["file_name"] for row in rows), "metadata.csv"]
    )
    with np.load(published.parent / "images.npz") as kept:
        for row, image in zip(rows, kept["images"], strict=True):
            assert np.array_equal(
                np.asarray(Image.open(published / "train" / row["file_name"])), image[..., 0]
            )


def test_the_dataset_card_states_licence_guarantee_and_what_is_not_here(
    published: Path, original: tuple[Path, Path]
) -> None:
    card = DatasetCard.load(published / "README.md")
    data: dict[str, Any] = card.data.to_dict()
    assert set(data) <= DATASET_KEYS
    assert data["license"] == "cc-by-4.0"
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train/*"}]}
    ]
    for words in (
        "ε = 6, δ = 0.0001",
        "5 synthetic images of 8x8",
        "sampler dpm, 3 steps, seed 0",
        "Not here",
    ):
        assert words in card.text
    for name in ("privacy.json", "privacy.json.sig"):
        assert (published / name).read_bytes() == (original[0] / name).read_bytes()


def test_the_model_card_has_a_licence_only_if_one_is_given(release: Path, tmp_path: Path) -> None:
    without = ModelCard.load(release / "README.md")
    data: dict[str, Any] = without.data.to_dict()
    assert set(data) <= MODEL_KEYS - {"license"}
    assert "No licence is stated" in without.text
    assert "Not here: the real images" in without.text
    licensed = write_release(tmp_path / "licensed", license_="apache-2.0")
    card = ModelCard.load(licensed / "README.md")
    assert card.data.to_dict()["license"] == "apache-2.0"
    assert "Licence: apache-2.0" in card.text
    assert verify_release(licensed) == []


@pytest.mark.parametrize("license_", ["", "Apache 2", "mit\nfree: yes", "a" * 60, "MIT"])
def test_a_licence_that_no_card_can_state_is_refused_before_the_work(
    release: Path, tmp_path: Path, license_: str
) -> None:
    with pytest.raises(TermsError, match="identifier"):
        write_release(tmp_path / "new", license_=license_)
    with pytest.raises(TermsError, match="identifier"):
        sample_release(release, 1, tmp_path / "out", png=True, license_=license_)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


def snippet_of(card: str) -> str:
    return card.split("```python\n")[1].split("```", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("sampler", "words", "code"),
    [
        ("dpm", "with the sampler and steps of samples.png", "num_inference_steps=3"),
        ("euler", "with the sampler and steps of samples.png", "EDMEulerScheduler.from_config"),
        ("churn", "made with the sampler churn", "num_inference_steps=3"),
    ],
)
def test_the_model_cards_snippet_samples_as_the_release_did_or_says_that_it_does_not(
    tmp_path: Path, sampler: str, words: str, code: str
) -> None:
    folder = write_release(tmp_path / "release", samples=SampleSettings(sampler, 3, 2, seed=0))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert words in card
    assert code in snippet_of(card)
    values: dict[str, Any] = {}
    exec(snippet_of(card).replace("path/to/this/folder", str(folder)), values)
    assert len(values["images"]) == 8


class Api:
    """Stands for the Hub: notes what it is asked, and fails as it is told."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fault = fault

    def create_repo(self, repo: str, **options: Any) -> str:
        self.asked.append(("create", {"repo": repo, **options}))
        if self.fault:
            raise self.fault
        return f"https://hub/{repo}"

    def upload_folder(self, **options: Any) -> None:
        self.asked.append(("upload", options))


def test_an_upload_creates_a_private_repository_and_sends_the_named_files_alone(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert push(release, "us/model", "model", sorted(ALLOWED)) == "https://hub/us/model"
    (_, created), (_, uploaded) = api.asked
    assert created == {"repo": "us/model", "repo_type": "model", "private": True, "exist_ok": True}
    assert (uploaded["folder_path"], uploaded["repo_id"], uploaded["repo_type"]) == (
        release,
        "us/model",
        "model",
    )
    assert uploaded["allow_patterns"] == sorted(ALLOWED)


@pytest.mark.parametrize("fault", [OSError("no route"), ValueError("bad\nname"), hub.HTTPError("refused")])
def test_a_failed_upload_is_one_line_that_says_what_is_kept(
    release: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: Api(fault))
    with pytest.raises(HubError) as refused:
        push(release, "us/model", "model", ["*"])
    assert "\n" not in str(refused.value)
    assert f"{release} is written, but was not uploaded to us/model" in str(refused.value)


@pytest.mark.parametrize("repo", ["", "a/b/c", "two words", "--x"])
def test_a_name_that_is_none_is_refused_without_a_connection(
    repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(HubError, match="OWNER/NAME"):
        require_repo(repo)
    require_repo("us/model-1")


def test_guidance_changes_the_images_and_is_said(tmp_path: Path) -> None:
    config = CONFIG | {"private": CONFIG["private"] | {"label_dropout": 0.1}}
    folder = write_release(tmp_path / "release", config=config)
    images = []
    for strength in (None, 1.0, 3.0):
        path, manner = sample_release(folder, 3, tmp_path / f"{strength}", guidance=strength)
        with np.load(path) as kept:
            images.append(kept["images"])
    assert str(manner) == "sampler dpm, 3 steps, guidance 3"
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
