"""A network that gives NaN ends its run before the budget is gone, and the last good checkpoint can be exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from curriculumdp.checkpoint import STATE
from curriculumdp.curriculum import train as module
from curriculumdp.curriculum.initial import untrained_state
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.soundness import TrainingError, fault_of
from curriculumdp.curriculum.state import State, module_tensors
from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World, one_process
from tests.support.runs import SECRET, finish, in_world, tiny

RUINS = {
    "NaN weights": lambda state: state.weights[3:4].fill_(float("nan")),
    "infinite weights": lambda state: state.weights[3:4].fill_(float("inf")),
    "weights too large to answer": lambda state: state.weights.fill_(3e38),
    "a NaN average": lambda state: state.ema[3:4].fill_(float("nan")),
    "an average too large to answer": lambda state: state.ema.fill_(3e38),
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def ruin_at(patch: pytest.MonkeyPatch, step: int, kind: str) -> None:
    """Makes DP-SGD's update of `step`, and of those after it, leave a ruined network."""
    original = PrivatePhase.update

    def update(self: PrivatePhase, state: State, now: int, total: torch.Tensor, key: bytes) -> None:
        original(self, state, now, total, key)
        if now >= step:
            RUINS[kind](state)

    patch.setattr(PrivatePhase, "update", update)


def charges(run_dir: Path) -> int:
    lines = (run_dir / "private" / "ledger.jsonl").read_text().splitlines()
    return sum(json.loads(line)["body"]["kind"] == "charge" for line in lines)


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "private" / "checkpoints").iterdir())


@pytest.mark.parametrize("kind", RUINS)
def test_a_ruined_network_stops_the_run_at_the_next_checkpoint_at_the_latest(tmp_path, monkeypatch, kind):
    """However often the same command is run: the steps up to there are replayed, and nothing more is charged."""
    ruin_at(monkeypatch, 2, kind)
    config = tiny(tmp_path, checkpoint__keep=1)
    spent = 3 + (3 if "weights" in kind and "too large" not in kind else 4)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"private\.learning_rate") as caught:
            finish(config)
        assert "\n" not in str(caught.value)
        assert "units excluded" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert charges(tmp_path) == spent
        assert checkpoints(tmp_path) == ["2-private-0000002"]
    out = export_run(tmp_path, tmp_path / "out", None, end_run=True)
    guarantee = json.loads((out / "privacy.json").read_text())["guarantee"]
    assert {row["name"]: row["count"] for row in guarantee["events"]} == {
        "central": 3,
        "private": spent - 3,
    }
    good = load_file(tmp_path / "private" / "checkpoints" / "2-private-0000002" / STATE)
    kept = module_tensors(untrained_state(tiny(tmp_path), torch.device("cpu")).net, good["ema"])
    exported = load_file(out / WEIGHTS)
    assert exported.keys() == kept.keys()
    for name, value in exported.items():
        assert value.isfinite().all()
        assert torch.equal(value, kept[name][: len(value)]), (
            name
        )  # without the null class, which DP-SGD never trained


def test_checkpoints_that_are_farther_apart_do_not_let_a_ruined_run_spend_on(tmp_path, monkeypatch):
    ruin_at(monkeypatch, 2, "NaN weights")
    for every in (2, 1000):
        with pytest.raises(TrainingError):
            finish(tiny(tmp_path, checkpoint__every=every))
        assert charges(tmp_path) == 3 + 3


@pytest.mark.parametrize("why", ["budget", "preempted"])
def test_a_run_that_ends_otherwise_saves_no_ruined_network_either(tmp_path, monkeypatch, why):
    ruin_at(monkeypatch, 2, "weights too large to answer")
    original = PrivatePhase.step

    def step(self, run, state, now):
        if now == 3 and why == "budget":
            raise module.OutOfBudget
        figures = original(self, run, state, now)
        if now == 2 and why == "preempted":
            run.stopping.set()
        return figures

    monkeypatch.setattr(PrivatePhase, "step", step)
    with pytest.raises(TrainingError):
        finish(tiny(tmp_path))
    assert checkpoints(tmp_path)[-1] == "2-private-0000002"
    assert not (tmp_path / "release").exists()


def test_every_process_of_a_ruined_run_stops(tmp_path):
    def work(world: World) -> None:
        with pytest.MonkeyPatch.context() as patch:
            ruin_at(patch, 2, "weights too large to answer")
            config = tiny(tmp_path, compute__processes=2)
            secret = RunSecret.from_bytes(SECRET) if world.is_main else None
            with pytest.raises(ValueError, match="ruined" if world.is_main else "rank 0 stopped"):
                run_curriculum(config, world, secret=secret)

    assert in_world(2, work) == [0, 0]
    assert charges(tmp_path) == 3 + 4


def test_what_is_asked_of_a_network_is_the_same_for_all_data_and_changes_nothing(make_run, digits):
    _, state = make_run(digits, one_process())
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    generator = torch.get_rng_state()
    assert fault_of(state) is None
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
