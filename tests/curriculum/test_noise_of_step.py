"""P2: where nobody is in the sample, what a real step adds is Gaussian noise of the promised size, never used twice.

All keys are fixed, so that every figure is exact from run to run. Bounds are quantiles that a right mechanism would
pass with a probability of 1e-6 or less, or 4.5 to 5.5 standard errors.
"""

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from curriculumdp.curriculum import batch, private, run, train
from curriculumdp.curriculum.central import CentralPhase
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.privacy import grid_noise as noise_module
from curriculumdp.privacy import sampling, streams
from curriculumdp.privacy.grid_noise import from_grid
from curriculumdp.privacy.sampling import poisson_rows
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World, one_process
from dpkernels.grid import GRID
from tests.support.one_step import (
    charged_run,
    forget_rows,
    gradient_of_step,
    gradients,
    nobody,
    noisy_sum_of_query,
)
from tests.support.runs import SECRET, in_world, tiny

STEPS, QUERIES = 40, 60
# Clip norms other than 1, so that a scale that forgets them shows.
CHANGES = {"private__clip_norm": 2.5, "central__clip_norm": 0.3}
ODDS = 1e-6


@dataclass(frozen=True)
class Noise:
    """What steps and queries on an empty sample add, in standard deviations of the promised noise."""

    steps: Tensor  # float64 [STEPS, P]
    queries: Tensor  # float64 [QUERIES, d]
    grid: Tensor  # int64 [QUERIES, d]
    layers: dict[str, Tensor]  # name → float64 [STEPS, size]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory, solve_once: None) -> Noise:
    config = tiny(Path("unused"), **CHANGES)
    run, state = charged_run(nobody(), config, tmp_path_factory.mktemp("noise"))
    steps, queries = PrivatePhase(run), CentralPhase(run)
    with pytest.MonkeyPatch.context() as patch:
        forget_rows(patch)
        grid = torch.stack([noisy_sum_of_query(queries, run, state, q) for q in range(QUERIES)])
        added = gradients(steps, run, state, STEPS) / (steps.event.noise_multiplier * 2.5)
    of_queries = from_grid(grid, 0.3) / (queries.event.noise_multiplier * 0.3)
    names, sizes = zip(*((name, p.numel()) for name, p in state.net.named_parameters()), strict=True)
    layers = dict(zip(names, added.split(sizes, dim=1), strict=True))
    return Noise(added, of_queries, grid, layers)


def within(values: Tensor, degrees: int, of: int) -> bool:
    """Whether sums of `degrees` squared standard normals are in a range that `of` of them leave with ODDS."""
    low, high = stats.chi2.ppf([ODDS / 2 / of, 1 - ODDS / 2 / of], degrees)
    return bool(low < float(values.min())) and bool(float(values.max()) < high)


def test_all_noise_together_has_the_promised_variance(noise):
    for added in (noise.steps, noise.queries):
        count = added.numel()
        assert within(added.square().sum()[None], count, 1), f"σ is {added.std():.4f} of the promised"
        assert abs(float(added.mean())) < 4.5 / math.sqrt(count)


def test_every_coordinate_of_every_step_has_the_promised_variance(noise):
    for added in (noise.steps, noise.queries):
        assert within(added.square().sum(0), len(added), added.shape[1])
        assert within(added.square().sum(1), added.shape[1], len(added))


def test_every_layer_gets_its_noise(noise):
    for name, added in noise.layers.items():
        assert within(added.square().sum()[None], added.numel(), len(noise.layers)), name


def test_the_noise_is_gaussian_by_kolmogorov_smirnov_and_in_its_tails(noise):
    for added in (noise.steps, noise.queries):
        ordered = added.flatten().sort().values.numpy()
        count = len(ordered)
        assert stats.kstest(ordered, "norm").pvalue > ODDS
        for far in (1.0, 2.0, 3.0, 4.0, 4.5):
            expected = count * math.erfc(far / math.sqrt(2))
            assert abs((np.abs(ordered) > far).sum() - expected) < 4.5 * math.sqrt(expected) + 1


def test_the_noise_of_a_step_reaches_the_far_tail(tmp_path, monkeypatch):
    """Chosen keystream words: a radius word of 0 is the farthest normal, 9.49; a cut at 5.7 or 6.8 shows here."""
    zeros = lambda _, words, __=0: np.zeros(words, np.uint64)  # noqa: E731
    forget_rows(monkeypatch)
    run, state = charged_run(nobody(), tiny(tmp_path), tmp_path)
    monkeypatch.setattr(streams, "keystream", zeros)
    steps = PrivatePhase(run)
    added = gradient_of_step(steps, run, state, 0) / steps.event.noise_multiplier
    farthest = math.sqrt(2 * 65 * math.log(2))
    assert float(added[0::2].min()) == pytest.approx(farthest, rel=1e-6)
    query = CentralPhase(run)
    far = from_grid(noisy_sum_of_query(query, run, state, 0), 1.0) / query.event.noise_multiplier
    assert float(far[0::2].min()) == pytest.approx(farthest, rel=1e-9)


def test_parameters_are_uncorrelated_at_every_distance(noise):
    for added in (noise.steps, noise.queries):
        count, width = added.numel(), added.shape[1]
        spectrum = torch.fft.rfft(added, n=2 * width).abs().square()
        products = torch.fft.irfft(spectrum).sum(0)[1 : width // 2] / math.sqrt(count)
        assert float(products.abs().max()) < 5.5, "Σ zᵢ zᵢ₊ₗ over steps and parameters, in standard errors"


def test_steps_and_queries_are_uncorrelated(noise):
    width = noise.queries.shape[1]
    for added in (noise.steps, torch.cat([noise.queries, noise.steps[:, :width]])):
        products = added @ added.T / math.sqrt(added.shape[1])
        assert float(products.fill_diagonal_(0).abs().max()) < 5.0


def test_no_three_neighbours_of_the_noise_occur_twice(noise):
    """Any noise that serves two parameters, steps or phases repeats values; two triples are equal by no chance."""
    bits = [
        part[:12].contiguous().view(torch.int64).numpy().astype(np.uint64) for part in noise.layers.values()
    ]
    bits.append(noise.grid.double().numpy().view(np.uint64))
    mixed = [
        part[:, :-2] * np.uint64(0x9E3779B97F4A7C15)
        + part[:, 1:-1] * np.uint64(0xC2B2AE3D27D4EB4F)
        + part[:, 2:] * np.uint64(0x165667B19E3779F9)
        for part in bits
    ]
    triples = np.concatenate([part.ravel() for part in mixed])
    assert len(np.unique(triples)) == len(triples)


def test_the_noise_covers_the_grid_to_its_last_bit(noise):
    """Noise of 24 bits would leave gaps, through which the low bits of a sum could be read (Mironov 2012)."""
    low = torch.bincount((noise.grid & 255).flatten(), minlength=256)
    expected = noise.grid.numel() / 256
    assert float(((low - expected) ** 2 / expected).sum()) < stats.chi2.ppf(1 - ODDS, 255)


def test_a_steps_noise_is_on_the_grid_and_covers_it_to_its_last_bit(tmp_path, monkeypatch):
    forget_rows(monkeypatch)
    run, state = charged_run(nobody(), tiny(tmp_path), tmp_path)
    seen: list[Tensor] = []
    original = private.from_grid
    monkeypatch.setattr(
        private, "from_grid", lambda noisy, c: (seen.append(noisy.clone()), original(noisy, c))[1]
    )
    PrivatePhase(run).step(run, state, 0)
    assert seen[0].dtype == torch.int64
    low = torch.bincount(seen[0] & 255, minlength=256)
    expected = len(seen[0]) / 256
    assert float(((low - expected) ** 2 / expected).sum()) < stats.chi2.ppf(1 - ODDS, 255)


def test_a_normal_has_more_bits_than_fp32(noise):
    """A normal drawn in fp32 is one of 2²⁴ a binade: its noise has gaps, whatever it is scaled by afterwards."""
    z = noise.grid.double() / (6.0 * GRID)
    off = (z - z.float().double()).abs() / z.abs()
    assert float((off < 1e-10).double().mean()) < 0.02


def test_the_entry_is_on_disk_before_its_noise_is_drawn(tmp_path, monkeypatch):
    run, state = charged_run(nobody(), tiny(tmp_path), tmp_path)
    forget_rows(monkeypatch)
    drawn: list[tuple[str, int]] = []
    original = noise_module.gaussian

    def looked(key: bytes, count: int) -> np.ndarray:
        lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines()
        last = json.loads(lines[-1])["body"]
        drawn.append((last.get("phase"), last.get("step")))
        return original(key, count)

    monkeypatch.setattr(noise_module, "gaussian", looked)
    for step in range(2):
        CentralPhase(run).step(run, state, step)
    for step in range(2):
        PrivatePhase(run).step(run, state, step)
    assert drawn == [("central", 0), ("central", 1), ("private", 0), ("private", 1)]


def test_another_sum_never_meets_the_same_noise(tmp_path, monkeypatch, digits):
    """One secret, one step, other data: under one noise the difference would be the data's, to the bit."""
    keys: list[bytes] = []
    original = noise_module.gaussian
    monkeypatch.setattr(noise_module, "gaussian", lambda key, n: (keys.append(key), original(key, n))[1])
    for name in ("one", "two", "again"):
        run, state = charged_run(digits, tiny(tmp_path), tmp_path / name)
        if name == "two":
            sampled = poisson_rows(run.rows_key("private", 0), 1437, 0.02)
            run.images = digits.without_unit(int(sampled[0]))
        PrivatePhase(run).step(run, state, 0)
    assert keys[0] == keys[2], "a replay has its own noise again"
    assert keys[0] != keys[1]


def steps_of_rank(world: World, folder: Path) -> None:
    """Three queries and three steps on an empty sample as one rank of a world; what they added goes to a file."""
    with pytest.MonkeyPatch.context() as patch:
        forget_rows(patch)
        run, state = charged_run(nobody(), tiny(folder, **CHANGES), folder / "ledger", world)
        queries = [noisy_sum_of_query(CentralPhase(run), run, state, q) for q in range(3)]
        steps = gradients(PrivatePhase(run), run, state, 3)
    torch.save((torch.stack(queries), steps), folder / f"{world.size}-{world.rank}.pt")


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_add_the_noise_of_one_process_once(tmp_path, size):
    """Noise of its own on a rank, noise before the reduce or noise over the world's size would all differ here."""
    one = tmp_path / "one"
    one.mkdir()
    steps_of_rank(one_process(), one)
    queries, steps = torch.load(one / "1-0.pt", weights_only=True)
    assert in_world(size, lambda world: steps_of_rank(world, tmp_path)) == [0] * size
    for rank in range(size):
        theirs = torch.load(tmp_path / f"{size}-{rank}.pt", weights_only=True)
        assert torch.equal(theirs[0], queries), f"rank {rank} made other queries than one process"
        assert torch.equal(theirs[1], steps), f"rank {rank} added other noise than one process"


class Interrupted(Exception):
    """Ends a run where a kill would, in the test's own process, so that what it drew stays known."""


@dataclass
class Draws:
    """All that a run and its legs draw for privacy."""

    noise: list[tuple[bytes, bytes]]  # (key, digest of the sum that it hid)
    blocks: list[
        tuple[bytes, int, int]
    ]  # (key, first block, blocks) of every keystream, in the order of drawing
    rows: list[bytes]
    units: list[bytes]  # the keys of the draws that belong to units


def watch_draws(patch: pytest.MonkeyPatch) -> Draws:
    draws = Draws([], [], [], [])
    stream, add_noise, unit_words = streams.keystream, run.add_noise, batch.unit_words

    def streamed(key: bytes, words: int, first_block: int = 0) -> np.ndarray:
        draws.blocks.append((key, first_block, -(-words // 8)))
        return stream(key, words, first_block)

    def rows_streamed(key: bytes, words: int, first_block: int = 0) -> np.ndarray:
        draws.rows.append(key)
        return streamed(key, words, first_block)

    def noised(total: Tensor, sigma: float, key: bytes) -> Tensor:
        draws.noise.append((key, hashlib.sha256(total.numpy().tobytes()).digest()))
        return add_noise(total, sigma, key)

    def worded(key: bytes, *rest: object) -> Tensor:
        draws.units.append(key)
        return unit_words(key, *rest)

    patch.setattr(streams, "keystream", streamed)
    patch.setattr(sampling, "keystream", rows_streamed)
    patch.setattr(run, "add_noise", noised)
    patch.setattr(private, "add_noise", noised)
    patch.setattr(batch, "unit_words", worded)
    return draws


def test_no_keystream_serves_twice_in_a_run_of_two_incarnations_and_a_replay(tmp_path, monkeypatch):
    """Three legs: stopped where no checkpoint was; replayed and stopped again; done again in other microbatches."""
    draws = watch_draws(monkeypatch)
    monkeypatch.setattr(train, "dry_step", lambda *_: None)  # it draws from a secret of its own
    config = tiny(tmp_path)
    update = PrivatePhase.update

    def stop_at(at: int) -> None:
        def stopping(self: PrivatePhase, state: object, step: int, *rest: object) -> None:
            if step == at:
                raise Interrupted
            update(self, state, step, *rest)

        monkeypatch.setattr(PrivatePhase, "update", stopping)

    legs = [(config, 1), (config, 3), (tiny(tmp_path, compute__microbatch=16), 3)]
    for leg, at in legs:
        stop_at(at)
        with pytest.raises(Interrupted):
            run_curriculum(leg, one_process(), secret=RunSecret.from_bytes(SECRET), accept_recharge=True)
    hidden: dict[bytes, set[bytes]] = {}
    for key, digest in draws.noise:
        hidden.setdefault(key, set()).add(digest)
    assert all(len(sums) == 1 for sums in hidden.values()), "one noise key met two different sums"
    assert len(draws.noise) > len(hidden), "the test has no power: nothing was replayed"
    kinds = [set(hidden), set(draws.rows), set(draws.units)]
    assert sum(map(len, kinds)) == len(set().union(*kinds)), "one key serves two purposes"
    assert len(kinds[2]) == 3, "each process draws for its own units, and each incarnation anew"
    assert len(hidden) == 3 + 3 + 1, "three queries; steps 0 to 2; step 2 under new keys"
    used: dict[bytes, set[tuple[int, int]]] = {}
    for key, first, blocks in draws.blocks:
        used.setdefault(key, set()).add((first, first + blocks))
    for parts in map(sorted, used.values()):
        assert all(end <= first for (_, end), (first, _) in itertools.pairwise(parts)), "a block serves twice"


def test_equal_sums_of_two_processes_never_meet_the_same_noise(tmp_path, monkeypatch):
    """Copies of a run folder may both do a step that nobody is in: one entry but for the process that wrote it."""
    forget_rows(monkeypatch)
    added = []
    for name, nonce in (("one", "1a" * 32), ("two", "2b" * 32)):
        run, state = charged_run(nobody(), tiny(tmp_path), tmp_path / name, nonce=nonce)
        added.append(gradient_of_step(PrivatePhase(run), run, state, 0))
    assert not (added[0] == added[1]).any()


def test_equal_steps_of_two_runs_have_no_noise_in_common(tmp_path, monkeypatch):
    """Two secrets, or one secret and another plan, give noise that has nothing to do with each other."""
    forget_rows(monkeypatch)
    added = []
    for name, secret, changes in (
        ("one", SECRET, {}),
        ("another secret", bytes(range(1, 33)), {}),
        ("another clip norm", SECRET, {"private__clip_norm": 2.0}),
    ):
        run, state = charged_run(nobody(), tiny(tmp_path, **changes), tmp_path / name, secret=secret)
        steps = PrivatePhase(run)
        added.append(gradient_of_step(steps, run, state, 0))
    unit = torch.stack([row / row.norm() for row in added])
    products = (unit @ unit.T * math.sqrt(unit.shape[1])).fill_diagonal_(0)
    assert float(products.abs().max()) < 5.0
