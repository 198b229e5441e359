"""Rules give a legal run for any public figures, find the recipes that were measured, and say where noise drowns."""

import pytest
import yaml

from curriculumdp.config.config import config_from
from curriculumdp.curriculum.new import new_config
from curriculumdp.curriculum.plan import noise_figures, plan_curriculum
from curriculumdp.recipe.rules import Asked, Recipe

CORNERS = [
    {"units": 2, "classes": 1, "size": 8, "channels": 1, "epsilon": 0.05},
    {"units": 600, "classes": 2, "size": 32, "channels": 3, "epsilon": 8.0},
    {"units": 5000, "classes": 100, "size": 10, "channels": 3, "epsilon": 20.0},
    {
        "units": 200_000,
        "classes": 40,
        "size": 64,
        "channels": 3,
        "epsilon": 1.0,
        "device": "cuda",
        "hours": 8.0,
    },
    {
        "units": 10**9,
        "classes": 2,
        "size": 256,
        "channels": 1,
        "epsilon": 0.2,
        "device": "cuda",
        "hours": 100.0,
    },
    {"units": 6000, "classes": 2, "size": 22, "channels": 1, "epsilon": 3.0, "hours": 0.001},
]
OTHERS = (
    {"device": "cpu", "cores": 2, "hours": None, "name": "new", "path": "pictures"}
    | dict.fromkeys(("csv", "unit", "roster"))
    | {"data": []}
)


def asked(**given):
    return OTHERS | {"source": "image_folder"} | given


@pytest.mark.parametrize("given", CORNERS, ids=lambda given: f"{given['units']}x{given['size']}px")
def test_any_public_figures_give_a_run_within_its_budget(given) -> None:
    text, _ = new_config(asked(**given))
    config = config_from(yaml.safe_load(text), "the recipe")
    assert plan_curriculum(config).epsilon <= given["epsilon"]
    assert config.privacy.delta * given["units"] <= 0.5
    assert 1 <= config.private.draws <= 32


def test_the_rules_find_the_recipes_that_they_were_fitted_on() -> None:
    digits = Recipe(Asked(1437, 10, 8, 1, 10.0, hours=0.06))
    work = digits.work(digits.net)
    assert digits.net.channels == (16, 32)
    assert 120 <= work.steps <= 180
    assert 0.3 <= work.sample_rate <= 0.4
    assert 4 <= work.draws <= 6
    fashion = Recipe(Asked(60_000, 10, 14, 1, 10.0, hours=0.09))
    work = fashion.work(fashion.net)
    assert fashion.net.channels == (16, 32)
    assert 250 <= work.steps <= 350
    assert work.draws == 1
    assert 500 <= work.sample_rate * 60_000 <= 750


def test_a_larger_set_a_larger_budget_and_more_time_never_shrink_the_network() -> None:
    base = {"units": 3000, "classes": 4, "size": 16, "channels": 1, "epsilon": 2.0, "hours": 0.1}
    sizes = [
        Recipe(Asked(**base | more)).net.size.parameters
        for more in ({}, {"units": 30_000}, {"epsilon": 10.0}, {"hours": 1.0})
    ]
    assert min(sizes[1:]) >= sizes[0]


def test_other_options_of_the_data_are_taken_over() -> None:
    given = asked(units=600, classes=2, size=16, channels=1, epsilon=8.0)
    text, _ = new_config(given | {"roster": "ids.txt", "data": ["data.fit=pad", "data.background=0"]})
    data = yaml.safe_load(text)["data"]
    assert (data["roster"], data["fit"], data["background"]) == ("ids.txt", "pad", 0)


def test_few_units_and_a_small_budget_are_warned_of_with_their_figures() -> None:
    _, found = new_config(asked(units=100, classes=4, size=32, channels=3, epsilon=0.5))
    assert any("central images" in line and "per pixel" in line for line in found)
    assert any("whole run" in line for line in found)
    assert not new_config(asked(units=60_000, classes=10, size=14, channels=1, epsilon=10.0))[1]


def test_a_batch_that_noise_drowns_is_warned_of() -> None:
    text, _ = new_config(asked(units=6000, classes=2, size=16, channels=1, epsilon=8.0))
    values = yaml.safe_load(text)
    values["private"] |= {"sample_rate": 0.002, "steps": 2000, "draws": 1}
    config = config_from(values, "the recipe")
    assert any("each step" in line for line in noise_figures(config, plan_curriculum(config)).warnings())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"units": 0}, "--units"),
        ({"classes": 101}, "--classes"),
        ({"size": 15}, "--size"),
        ({"size": 4000}, "--size"),
        ({"epsilon": float("nan")}, "--epsilon"),
        ({"epsilon": -1.0}, "--epsilon"),
        ({"hours": 0.0}, "--hours"),
        ({"name": "../up"}, "--name"),
        ({"path": None}, "--path"),
        ({"data": ["private.steps=3"]}, "private.steps"),
        ({"data": ["data.nonsense=3"]}, "nonsense"),
    ],
)
def test_an_impossible_figure_is_refused_by_its_option(wrong, named) -> None:
    given = asked(units=100, classes=4, size=32, channels=3, epsilon=1.0) | wrong
    with pytest.raises(ValueError, match=named):
        new_config(given)
