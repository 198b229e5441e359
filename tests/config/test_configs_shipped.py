"""Every file under configs/ is a run, and the recipes are those of their source."""

from math import ceil
from pathlib import Path

import pytest

from curriculumdp.config.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
LAUNCHERS = sorted((CONFIGS / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_is_named_like_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize(
    ("name", "units", "batch", "epochs", "steps"),
    [
        ("mnist", 60_000, 4096, 150, 2250),
        ("fashion_mnist", 60_000, 4096, 150, 2250),
        ("celeba32", 182_637, 2048, 150, 13_500),
        ("camelyon32", 302_436, 2048, 20, 2960),
    ],
)
def test_rate_and_steps_follow_from_batch_and_epochs(
    name: str, units: int, batch: int, epochs: int, steps: int
) -> None:
    for epsilon in (1, 10):
        config = load_config(CONFIGS / f"{name}_eps{epsilon}.yaml")
        a_epoch = ceil(units / batch)
        assert config.data.units == units
        assert config.private.sample_rate == pytest.approx(1 / a_epoch, rel=1e-12)
        assert config.private.steps == epochs * a_epoch == steps
        assert (config.private.draws, config.private.clip_norm) == (32, 1.0)
        assert config.privacy.epsilon == epsilon
        assert config.privacy.delta == (1e-5 if units == 60_000 else 1e-6)


def test_the_two_budgets_of_a_data_set_differ_in_nothing_else() -> None:
    for path in RUNS:
        if path.stem.endswith("_eps1"):
            one = load_config(path).resolved()
            ten = load_config(path.with_name(f"{path.stem}0.yaml")).resolved()
            assert {key for key in one if one[key] != ten[key]} == {"name", "run_dir", "privacy"}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_config_is_one_that_accelerate_knows(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    launcher = load_config_from_file(str(path))
    assert launcher.mixed_precision == "no"
    assert (launcher.num_processes > 1) == (launcher.distributed_type == "MULTI_GPU")
    assert launcher.num_processes % launcher.num_machines == 0


def test_the_cpu_launchers_ask_for_one_and_two_processes() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    for name, processes in (("cpu", 1), ("two_cpu_processes", 2)):
        launcher = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
        assert (launcher.num_processes, launcher.use_cpu) == (processes, True)
