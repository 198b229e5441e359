"""P3: with the noisy sums frozen, everything that leaves a run is equal to the bit, whatever the sensitive images.

A run on D records the noisy sums that it released; a run on D′ is given them in the place of its own. What it then
hands out can depend on D′ only by a way round the noise.
"""

import io
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp import metrics
from curriculumdp.checkpoint import STATE
from curriculumdp.config.config import Config
from curriculumdp.curriculum import private, run
from curriculumdp.curriculum import train as module
from curriculumdp.curriculum.central import CentralPhase
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.data.images import ImageSet
from curriculumdp.time_left import TimeLeft
from tests.support.frequency import with_frequency, without_solving
from tests.support.one_step import charged_run, nobody
from tests.support.runs import finish, tiny

EMPTIED = 200


class Frozen:
    """Stands in for the noise: hands out what it handed out first, once `replay` was called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.released: list[Tensor] = []
        self._left: list[Tensor] | None = None
        self._add_noise = run.add_noise
        patch.setattr(run, "add_noise", self._release)
        patch.setattr(private, "add_noise", self._release)

    def _release(self, total: Tensor, sigma: float, key: bytes) -> Tensor:
        if self._left is None:
            self.released.append(self._add_noise(total, sigma, key))
            return self.released[-1].clone()
        return self._left.pop(0).clone()

    def replay(self) -> None:
        """From here on the recorded sums come again, from the first one on."""
        self._left = list(self.released)


def others(digits: ImageSet) -> ImageSet:
    """Data as far from the digits as can be: negatives in other classes, class 3 empty, many places too."""
    kept = digits.units >= EMPTIED
    labels = (digits.labels[kept] * 7 + 1) % 10
    labels[labels == 3] = 4
    return ImageSet(255 - digits.images[kept], labels, digits.units[kept], digits.unit_count)


class SilentBar:
    """A progress bar that keeps what it is told, without the clock."""

    def __init__(self, **given: Any) -> None:
        self.told: list[Any] = [given]
        BARS.append(self)

    def __enter__(self) -> "SilentBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.told.append("closed")

    def set_description_str(self, text: str, refresh: bool) -> None:
        self.told.append(text)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.told.append(text)

    def update(self) -> None:
        self.told.append("one step")


BARS: list[SilentBar] = []


def everything_that_leaves(config: Config, images: ImageSet, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a run shows to those without its private folder, and the state that its release was made of."""
    patch.setattr(module, "load_unless_stopped", lambda *_: images)
    patch.setattr(metrics, "tqdm", SilentBar)
    patch.setattr(metrics, "TimeLeft", partial(TimeLeft, clock=lambda: 0.0))
    BARS.clear()
    said, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complained):
        finish(config)
    folder = Path(config.run_dir)
    public = [p for p in folder.rglob("*") if p.is_file() and "private" not in p.relative_to(folder).parts]
    newest = sorted((folder / "private" / "checkpoints").iterdir())[-1]
    return {
        **{str(path.relative_to(folder)): path.read_bytes() for path in public},
        "names": sorted(path.relative_to(folder) for path in public),
        "state": (newest / STATE).read_bytes(),
        "bar": [bar.told for bar in BARS],
        "stdout": said.getvalue().replace(str(folder), "RUN"),
        "stderr": complained.getvalue(),
    }


KINDS: dict[str, dict[str, object]] = {
    "mean with public denominators": {"central__count_weight": 0.0},
    "mean with noisy counts": {"central__count_weight": 1.5},
    "mode": {"central__statistic": "mode"},
}


@pytest.mark.parametrize("statistic", [*KINDS, "embedding"])
def test_all_that_leaves_a_run_is_equal_to_the_bit_for_other_data(tmp_path, monkeypatch, digits, statistic):
    frozen = Frozen(monkeypatch)
    made = with_frequency if statistic == "embedding" else tiny
    changes = {"private__clip_norm": 0.5} | KINDS.get(statistic, {})
    with without_solving() if statistic == "embedding" else nullcontext():
        first = everything_that_leaves(made(tmp_path / "one", **changes), digits, monkeypatch)
        frozen.replay()
        second = everything_that_leaves(made(tmp_path / "two", **changes), others(digits), monkeypatch)
    embeddings = int(statistic == "embedding")
    # The first in the dry step, on dummy images.
    assert len(frozen.released) == 1 + 3 + embeddings + 6
    assert not frozen._left, "the second run released another number of sums"
    assert first["names"] == second["names"]
    assert [name for name in first if first[name] != second[name]] == []
    seen = [(tmp_path / name / "private" / "metrics.jsonl").read_text() for name in ("one", "two")]
    losses = [[line.partition('"loss"')[2] for line in text.splitlines()] for text in seen]
    assert losses[0] != losses[1], "the test has no power: both runs saw the same data"


@pytest.mark.parametrize("data", ["others", "nobody"])
@pytest.mark.parametrize("count_weight", [0.0, 1.5])
def test_weights_moments_ema_and_central_images_come_from_the_noisy_sums_alone(
    tmp_path, monkeypatch, digits, data, count_weight
):
    """The same, step by step: what is left after each step, where the whole run above only shows its end."""
    frozen = Frozen(monkeypatch)
    config = tiny(tmp_path, central__count_weight=count_weight)
    states = []
    for name, images in (("one", digits), ("two", others(digits) if data == "others" else nobody())):
        run, state = charged_run(images, config, tmp_path / name)
        trace = []
        for kind, steps in ((CentralPhase, 2), (PrivatePhase, 2)):
            phase = kind(run)
            phase.begin(run, state)
            for step in range(steps):
                phase.step(run, state, step)
                trace.append({key: value.clone() for key, value in state.tensors().items()})
        states.append(trace)
        frozen.replay()
    for before, after in zip(*states, strict=True):
        assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert len(frozen.released) == 4


def test_how_long_a_run_is_and_what_it_charges_does_not_depend_on_the_data(tmp_path, digits):
    """No entry of the ledger but the MAC of its sum differs, and no key but through that MAC."""
    entries = []
    for name, images in (("one", digits), ("two", others(digits)), ("three", nobody())):
        run, state = charged_run(images, tiny(tmp_path), tmp_path / name)
        for kind in (CentralPhase, PrivatePhase):
            phase = kind(run)
            for step in range(2):
                phase.step(run, state, step)
        assert run.ledger is not None
        entries.append([{**entry, "sum_mac": None} for entry in list(run.ledger.entries())[3:]])
        keys = [run.rows_key("private", 1), run.draws_key("private", 1)]
        entries[-1].append({"keys": keys})
    assert entries[0] == entries[1] == entries[2]


def test_a_unit_whose_gradient_is_not_finite_shows_in_nothing_public(tmp_path, monkeypatch, digits):
    """Left out, counted in private: with the sums frozen no release, bar or line tells that it was there."""
    frozen = Frozen(monkeypatch)
    config = tiny(tmp_path)
    run, state = charged_run(digits, config, tmp_path / "one")
    phase = PrivatePhase(run)
    phase.step(run, state, 0)
    before = state.ema.clone()
    frozen.replay()
    run, state = charged_run(digits, config, tmp_path / "two")
    drawn = private.draw_batch

    def spoiled(*given: Any) -> Any:
        batch = drawn(*given)
        batch.images[::3] = np.nan
        return batch

    monkeypatch.setattr(private, "draw_batch", spoiled)
    figures = PrivatePhase(run).step(run, state, 0)
    assert figures["excluded"] > 0
    assert torch.equal(state.ema, before)
