"""A certificate's events must be what a run of its config can have come to."""

from pathlib import Path

import pytest
import yaml

from curriculumdp.config.data_section import DataConfig
from curriculumdp.config.sections import CentralConfig
from curriculumdp.curriculum.central import clip_norm_of
from curriculumdp.release import verify
from curriculumdp.release.export import certified_events
from curriculumdp.release.verify import verify_release
from tests.support.forged import certify_again, with_row
from tests.support.tiny_release import CONFIG, EVENTS, guarantee, write_release


def test_a_run_of_central_images_alone_verifies(tmp_path: Path) -> None:
    config = {**CONFIG, "curriculum": ["central", "warmup"]}
    said = guarantee(events=certified_events(EVENTS[:1], {"central": 4.0}))
    release = write_release(tmp_path / "release", config=config, guarantee=said)
    assert verify_release(release) == []
    (release / "training_config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert any(line.startswith("private.steps") for line in verify.config_problems(release, said))


COURSES: list[tuple[tuple[str, ...], str, dict[str, int], bool, str]] = [
    # curriculum, stopped, counts (3 queries and 40 steps are planned), central.png, what is wrong with it
    (("central", "private"), "planned", {"central": 3, "private": 40}, True, ""),
    (("central", "private"), "planned", {"central": 4, "private": 41}, True, ""),
    (("central", "private"), "planned", {}, True, "lists no event"),
    (("central", "private"), "planned", {"central": 3}, True, "private.steps"),
    (("central", "private"), "planned", {"private": 40}, False, "central.queries"),
    (("central", "private"), "planned", {"central": 3, "private": 39}, True, "private.steps"),
    (("central", "private"), "operator", {"central": 3, "private": 7}, True, ""),
    (("central", "private"), "operator", {"central": 2}, True, ""),
    (("central", "private"), "operator", {"central": 1}, False, ""),
    (("central", "private"), "operator", {}, True, "central.png"),
    (("central", "private"), "operator", {}, False, "lists no event"),
    (("central", "private"), "operator", {"central": 0, "private": 0}, False, "lists no event"),
    (("central", "private"), "operator", {"private": 7}, False, "not all the queries"),
    (("central", "private"), "operator", {"private": 7}, True, "central.png"),
    (("central", "private"), "operator", {"central": 2, "private": 7}, True, "not all the queries"),
    (("central", "private"), "budget", {"central": 3, "private": 40}, True, ""),
    (("central", "private"), "budget", {"central": 5, "private": 20}, True, ""),
    (("central", "private"), "budget", {"central": 2}, True, "stopped is budget"),
    (("central", "private"), "budget", {}, False, "stopped is budget"),
    (("central", "private"), "planned", {"private": 40, "central": 3}, True, "in this order"),
    (("central", "private"), "planned", {"central": 3, "private": 40, "more": 1}, True, "in this order"),
    (("central",), "planned", {"central": 3}, True, ""),
    (("central",), "planned", {}, True, "central.queries"),
    (("central",), "operator", {"central": 3, "private": 1}, True, "in this order"),
    (("private",), "planned", {"private": 40}, False, ""),
    (("private",), "planned", {"private": 40}, True, "central.png"),
    (("private",), "operator", {"central": 1, "private": 40}, True, "in this order"),
    (("private",), "operator", {}, False, "lists no event"),
    (("private",), "budget", {"private": 39}, False, "stopped is budget"),
]


@pytest.mark.parametrize(("phases", "stopped", "counts", "picture", "wrong"), COURSES)
def test_releases_must_be_what_a_run_of_the_config_can_have_come_to(
    tmp_path: Path, phases: tuple[str, ...], stopped: str, counts: dict[str, int], picture: bool, wrong: str
) -> None:
    first, second = guarantee().events
    kinds = {"central": first, "private": second, "more": second.model_copy(update={"name": "more"})}
    rows = tuple(kinds[name].model_copy(update={"count": count}) for name, count in counts.items())
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(CONFIG | {"curriculum": list(phases)}))
    if picture:
        (tmp_path / "central.png").write_bytes(b"")
    problems = verify.config_problems(tmp_path, guarantee(events=rows, stopped=stopped))
    assert any(wrong in line for line in problems) if wrong else problems == []


def test_each_phase_stands_once(tmp_path: Path) -> None:
    first, second = guarantee().events
    half = second.model_copy(update={"count": 20})
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(CONFIG))
    problems = verify.config_problems(tmp_path, guarantee(events=(first, half, half)))
    assert any("each once" in line for line in problems)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_a_clip_norm_that_the_config_leaves_open_is_the_one_that_training_takes(
    tmp_path: Path, statistic: str
) -> None:
    central = CONFIG["central"] | {"statistic": statistic}
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(CONFIG | {"central": central}))
    taken = clip_norm_of(CentralConfig(**central), DataConfig(source="digits", **CONFIG["data"]))
    first, second = guarantee().events
    for clip_norm in (taken, taken * 2):
        rows = (first.model_copy(update={"clip_norm": clip_norm}), second)
        assert bool(verify.config_problems(tmp_path, guarantee(events=rows))) == (clip_norm != taken)


@pytest.mark.parametrize("stopped", ["planned", "operator"])
def test_more_noise_than_the_plan_was_solved_for_is_refused(release: Path, stopped: str) -> None:
    """An unsigned sender multiplies σ and recomputes all that follows from it: each figure then agrees."""
    changes = {"noise_multiplier": 1e5} | ({"count": 7} if stopped == "operator" else {})
    guarantee = with_row(release, **changes)["guarantee"].model_copy(update={"stopped": stopped})
    certify_again(release, guarantee=guarantee, accounting=verify.account(guarantee))
    problem = "\n".join(verify_release(release))
    assert "private.noise_multiplier is 100000" in problem
    assert "noise is solved to use all of 6" in problem


def test_a_run_that_ended_early_under_its_own_noise_verifies(release: Path) -> None:
    guarantee = with_row(release, count=7)["guarantee"].model_copy(update={"stopped": "operator"})
    certify_again(release, guarantee=guarantee, accounting=verify.account(guarantee))
    assert verify_release(release) == []


@pytest.mark.parametrize("count", [10**9, 0, -1, 40.5, float("nan"), float("inf"), True, "40", None])
def test_a_number_of_steps_that_no_plan_can_have_is_a_problem_not_an_error(
    tmp_path: Path, count: object
) -> None:
    release = write_release(tmp_path / "release", guarantee=guarantee(stopped="operator"))
    config = {**CONFIG, "private": {**CONFIG["private"], "steps": count}}
    (release / "training_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    certify_again(release)
    assert verify_release(release) == ["training_config.yaml is not a training config"]
