"""A release is sampled its own way, or as a purpose or an option says; guidance only where a null class was trained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from curriculumdp.diffusion.sample import SAMPLERS
from curriculumdp.release.files import CONFIG
from curriculumdp.release.manner import PURPOSES, Manner, MannerError, chosen_manner


def folder_with(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config))
    return tmp_path


OWN = {"sampling": {"sampler": "heun", "steps": 40}}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((None, None, None), Manner("heun", 40)),
        ((None, "churn", None), Manner("churn", 40)),
        ((None, None, 7), Manner("heun", 7)),
        (("utility", None, None), PURPOSES["utility"]),
        (("fidelity", None, 20), Manner("churn", 20)),
    ],
)
def test_the_releases_own_manner_is_the_default(
    tmp_path: Path, asked: tuple[str | None, str | None, int | None], expected: Manner
) -> None:
    assert chosen_manner(folder_with(tmp_path, **OWN), *asked, None) == expected


def test_each_purpose_names_a_sampler_that_there_is() -> None:
    assert {manner.sampler for manner in PURPOSES.values()} <= set(SAMPLERS)


@pytest.mark.parametrize(
    "sampling",
    [None, {}, {"sampler": "dpm"}, {"sampler": 3, "steps": 4}, "dpm", {"sampler": "dpm", "steps": True}],
)
def test_a_release_that_states_no_manner_is_not_guessed(tmp_path: Path, sampling: object) -> None:
    release = folder_with(tmp_path, sampling=sampling)
    with pytest.raises(MannerError, match="give --for, or --sampler and --steps"):
        chosen_manner(release, None, None, None, None)
    assert chosen_manner(release, "utility", None, None, None) == PURPOSES["utility"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"private": {"label_dropout": 0.0}, "warmup": {"label_dropout": 0.1}}, "private.label_dropout is 0"),
        ({"private": {}}, "private.label_dropout is 0"),
        (
            {"curriculum": ["central", "warmup"], "warmup": {"label_dropout": 0.0}},
            "warmup.label_dropout is 0",
        ),
        ({"private": {"label_dropout": "much"}}, "private.label_dropout"),
    ],
)
def test_guidance_without_a_trained_null_class_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(MannerError, match=named):
        chosen_manner(folder_with(tmp_path, **OWN, **config), None, None, None, 2.0)


def test_guidance_is_taken_where_the_last_phase_trained_a_null_class(tmp_path: Path) -> None:
    release = folder_with(tmp_path, **OWN, private={"label_dropout": 0.1})
    assert chosen_manner(release, None, None, None, 2.0) == Manner("heun", 40, 2.0)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(MannerError, match="guidance is"):
            chosen_manner(release, None, None, None, wrong)


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"\xff"])
def test_a_config_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(MannerError) as refused:
        chosen_manner(tmp_path, None, None, None, None)
    assert "\n" not in str(refused.value)
