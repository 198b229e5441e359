"""What a config may ask of the frequency phase, what a plan says of it, and how the warm-up uses its images."""

from collections.abc import Iterator

import pytest
import torch

from curriculumdp.config.yaml_file import ConfigError
from curriculumdp.curriculum.plan import plan_curriculum, signal_line
from curriculumdp.curriculum.state import CentralImages
from curriculumdp.curriculum.warmup import WarmupPhase
from curriculumdp.privacy.calibrate import BudgetTooSmall
from curriculumdp.world import one_process
from tests.support import runs
from tests.support.frequency import with_frequency, without_solving
from tests.support.runs import finish, tiny


@pytest.fixture(scope="module", autouse=True)
def solve_once() -> Iterator[None]:
    """Plans without solving, in place of this folder's fixture of the same name."""
    with without_solving():
        yield


def test_the_last_warmup_steps_use_the_frequency_images_and_begin_from_the_average(tmp_path, digits):
    run, state = runs.bare_run(digits, one_process(), with_frequency(tmp_path))
    phase, labels = WarmupPhase(run), torch.arange(4)
    state.central = CentralImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels)
    state.frequency = CentralImages(torch.full((4, 1, 8, 8), 255, dtype=torch.uint8), labels)
    white = [bool((phase._draw(run, state, step)["images"] == 1).all()) for step in range(4)]
    assert white == [False, False, True, True]
    state.ema.copy_(state.weights + 1)
    handed_on = state.ema.clone()
    phase.step(run, state, 2)
    assert (
        state.weights - handed_on
    ).abs().max() < 2 * 1e-3  # a step of Adam moves by about the learning rate


def test_without_central_images_all_warmup_steps_use_frequency_images(tmp_path, digits):
    alone = {
        "curriculum": ["frequency", "warmup", "private"],
        "central": None,
        "warmup__frequency_steps": None,
    }
    config = with_frequency(tmp_path, **alone)
    assert WarmupPhase(runs.bare_run(digits, one_process(), config)[0]).turn == 0
    release = finish(config)
    assert not (release / "central.png").exists()
    assert (release / "frequency.png").exists()


TINY = {"noise_multiplier": 8.0, "images": 25}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"warmup__frequency_steps": None}, "warmup.frequency_steps is missing"),
        ({"warmup__frequency_steps": 4}, "warmup.frequency_steps is 4 of warmup.steps = 4"),
        ({"frequency": None, "curriculum": ["central", "warmup", "private"]}, "without a frequency phase"),
        ({"frequency": TINY | {"images": 9}}, "frequency.images is 9"),
        ({"frequency": TINY | {"bandwidth": 1e-6}}, "frequency.bandwidth is 1e-06"),
        ({"frequency": TINY | {"bandwidth": 1e7}}, "frequency.bandwidth"),
        ({"frequency": None}, "frequency is missing but curriculum lists it"),
        ({"curriculum": ["central", "warmup", "private"]}, "frequency is given but curriculum is"),
        ({"curriculum": ["frequency", "private"], "central": None, "warmup": None}, "frequency and warmup"),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=named):
        with_frequency(tmp_path, **changes)


def test_a_plan_warns_where_the_signal_is_below_its_noise(tmp_path):
    """1437 units in 10 classes at σ = 8: 18 units of a class per σ, over the root of the features."""
    assert signal_line(with_frequency(tmp_path)) == (
        "frequency: signal to noise per value of the embedding is at most 4"
    )
    noisy = with_frequency(tmp_path, frequency={"noise_multiplier": 40.0, "features": 20, "images": 25})
    line = signal_line(noisy)
    assert line is not None
    assert line.startswith("warning: ")
    assert "at most 0.8, below 1" in line
    assert signal_line(tiny(tmp_path)) is None


def test_too_little_noise_for_the_budget_names_the_option(tmp_path):
    config = with_frequency(tmp_path, frequency={"noise_multiplier": 0.5, "images": 25})
    with pytest.raises(BudgetTooSmall, match=r"^frequency\.noise_multiplier = 0\.5 costs ε = .* alone"):
        plan_curriculum(config)
