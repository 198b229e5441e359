"""A study does each run once, names what it measured, and its non-private reference has nothing to export."""

import ast
import csv
from pathlib import Path

import pytest
import torch

from bench import study
from bench.baselines import non_private
from curriculumdp.config.config import load_config
from curriculumdp.curriculum.declared import load_declared
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss
from curriculumdp.diffusion.networks import build_unet

STUDY = """
config: configs/digits.yaml
replicas: 2
images: 20
sets: 1
classifiers: [logistic]
fd: false
variants:
  as shipped: []
  wider: ["model.channels=[32,64]"]
  without noise: {trainer: non-private}
"""


@pytest.fixture
def table(tmp_path: Path) -> study.Study:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    return study.read_study(file)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(trainer, seed) of each run, of which no one trains."""
    asked: list[tuple[str, int]] = []

    def trained(config, trainer):
        asked.append((trainer, config.seed))
        torch.manual_seed(0)
        return build_unet((8, 16), 8, 1, 10, True, blocks=1)

    monkeypatch.setattr(study, "trained", trained)
    return asked


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["study.py", str(tmp_path / "small.yaml"), "--threads=1", "--out", str(tmp_path), *more],
    )
    assert study.main() == 0


@pytest.mark.usefixtures("table")
def test_each_run_is_done_once_first_of_all_variants_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[tuple[str, int]]
) -> None:
    run(tmp_path, monkeypatch, "--only", "as shipped")
    assert trainings == [("private", 0), ("private", 1)]
    run(tmp_path, monkeypatch)
    assert trainings[2:] == [("private", 0), ("non-private", 0), ("private", 1), ("non-private", 1)]
    run(tmp_path, monkeypatch)
    assert len(trainings) == 6
    with (tmp_path / "small.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["replica"], row["epsilon"]) for row in rows] == [
        ("as shipped", "0", "10.0"), ("as shipped", "1", "10.0"),
        ("wider", "0", "10.0"), ("without noise", "0", ""),
        ("wider", "1", "10.0"), ("without noise", "1", ""),
    ]  # fmt: skip
    assert all(0 <= float(row["logistic"]) <= 100 for row in rows)


@pytest.mark.usefixtures("trainings")
def test_the_table_gives_means_spreads_and_differences_with_their_intervals(
    table: study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="run the study first"):
        run(tmp_path, monkeypatch, "--table")
    for variant, values in zip(table.variants, ([90.0, 92.0, 94.0], [80.0, 81.0]), strict=False):
        config = table.configured(variant, 0, 1, tmp_path)
        for replica, value in enumerate(values):
            row = {"replica": replica, "logistic": value, "digest": study.digest_of(config, "private", table)}
            study.append(tmp_path / "small.csv", row)
    capsys.readouterr()
    run(tmp_path, monkeypatch, "--table")
    printed = capsys.readouterr().out
    assert "as shipped: 3 runs\n  logistic             92.000 ± 2.000\n" in printed
    # Welch: variances of the means 4/3 and 1/4, 2.635 degrees of freedom, t = 3.447, error of the difference 1.258.
    assert "wider: 2 runs\n  logistic             80.500 ± 0.707   difference -11.500 ± 4.337\n" in printed
    assert "without noise: 0 runs" in printed


@pytest.mark.usefixtures("table")
def test_a_study_begins_no_run_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[tuple[str, int]]
) -> None:
    run(tmp_path, monkeypatch, "--minutes=0")
    assert trainings == []


def test_a_line_is_known_by_what_matters_alone(table: study.Study, tmp_path: Path) -> None:
    def digest(*overrides: str, trainer: str = "private", replica: int = 0, threads: int = 1) -> str:
        config = table.configured(study.Variant("v", overrides), replica, threads, tmp_path / f"{replica}")
        return study.digest_of(config, trainer, table)

    plain = digest()
    assert plain == digest(replica=1, threads=2) == digest("checkpoint.every=7")
    others = {
        digest("private.ema=0.9"),
        digest("privacy.epsilon=1"),
        digest("sampling.steps=9"),
        digest(trainer="non-private"),
    }
    assert len(others - {plain}) == 4


def test_the_non_private_reference_learns_and_repeats(table: study.Study, tmp_path: Path) -> None:
    quick = [
        *("model.channels=[8,16]", "private.sample_rate=0.05", "private.draws=1", "private.ema=0"),
        "private.learning_rate=3e-3",
    ]
    real = torch.from_numpy(load_declared(load_config(table.config), None).images).float() / 127.5 - 1
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))

    def loss(steps: int) -> float:
        """Of denoising all digits at σ = ½, labels unknown."""
        config = table.configured(study.Variant("v", (*quick, f"private.steps={steps}")), 0, 1, tmp_path)
        net = non_private.train_without_privacy(config).net
        labels = torch.full((len(real),), 10)
        with torch.no_grad():
            losses = edm_loss(Denoiser(net), real, labels, torch.full((len(real),), 0.5), noise)
        return float(losses.mean())

    after_one = loss(1)
    assert after_one == loss(1)
    assert loss(25) < 0.75 * after_one


def test_the_non_private_reference_imports_nothing_that_could_export_it() -> None:
    source = Path(non_private.__file__).read_text()
    names = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert not [name for name in names if "export" in name or "publish" in name or "certificate" in name]
    assert "save" not in source
