"""P2 by statistics: what the real path adds to a sum is Gaussian to its farthest tail, and independent of all else.

The noise comes from `Run.noisy_sum` on sums of zeros: ledger entry, key, ChaCha20, Box-Muller, grid.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from scipy.stats import t as student

from curriculumdp.curriculum.plan import Plan
from curriculumdp.curriculum.run import Run
from curriculumdp.data.images import ImageSet
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy import streams
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.grid_noise import add_noise
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.privacy.streams import gaussian
from curriculumdp.world import one_process
from dpkernels.grid import GRID
from tests.support.levels import LEVEL, Floats, binomial_p, farthest_normal, largest_correlation
from tests.support.runs import NONCE, tiny

PARAMETERS = 2**17
CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 6.0, 10)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.7, 10)
SECRET = bytes(range(100, 132))
# What a radius word of 0 comes to, the farthest normal of all.
MAX_NORMAL = math.sqrt(2 * 65 * math.log(2))

Noises = dict[tuple[int, str, int], Floats]


def zero_sums(folder: Path, parameters: int) -> Noises:
    """The noise, in units of its σ, of each (incarnation, phase, step) of a run whose sums are all zero."""
    nobody = ImageSet(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64), 1)
    secret = RunSecret.from_bytes(SECRET)
    plan = {"events": [asdict(CENTRAL), asdict(PRIVATE)]}
    ledger = Ledger.create(folder, secret, plan, list(nobody.content_arrays().values()))
    run = Run(
        config=tiny(folder),
        plan=Plan((), 1.0, 1e-5, 1.0, "none"),
        world=one_process(),
        secret=secret,
        images=nobody,
        ledger=ledger,
    )
    found: Noises = {}
    for incarnation in range(2):
        if incarnation:
            run.begin_incarnation({"threads": 1}, "a replayed sum differs")
        else:
            run.begin({"threads": 1}, NONCE)
        for event, step in itertools.product((CENTRAL, PRIVATE), range(4)):
            noisy = run.noisy_sum(event, step, 0.7, torch.zeros(parameters, dtype=torch.int64))
            found[incarnation, event.name, step] = noisy.numpy() / (event.noise_multiplier * GRID)
    ledger.close()
    return found


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Noises:
    return zero_sums(tmp_path_factory.mktemp("run"), PARAMETERS)


# --- checks, each of which a planted fault below must fail


def normal_p(z: Floats) -> float:
    """Kolmogorov-Smirnov against N(0, 1)."""
    return float(kstest(z, "norm").pvalue)


def far_part_p(z: Floats, beyond: float = 2.5) -> float:
    """Kolmogorov-Smirnov of the sizes beyond `beyond` alone, where a test of the whole sees nothing."""
    far = np.abs(z[np.abs(z) > beyond])
    return float(kstest(far, lambda x: 1 - norm.sf(x) / norm.sf(beyond)).pvalue)


def tail_counts_p(z: Floats) -> float:
    """How many lie beyond 1 to 5 σ, on either side: exact binomials that share the level."""
    places = [1.0, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0]
    found = [
        binomial_p(int((sign * z > place).sum()), len(z), float(norm.sf(place)))
        for place in places
        for sign in (1, -1)
    ]
    return min(1.0, len(found) * min(found))


def angle_p(z: Floats) -> float:
    """Consecutive normals as points of a plane: their directions must be uniform."""
    return float(kstest(np.arctan2(z[1::2], z[0::2]), "uniform", args=(-np.pi, 2 * np.pi)).pvalue)


def radius_p(z: Floats) -> float:
    """Half the squared distance of these points from the origin must be exponential."""
    return float(kstest((z[0::2] ** 2 + z[1::2] ** 2) / 2, "expon").pvalue)


SHAPES: dict[str, Callable[[Floats], float]] = {
    "normal": normal_p,
    "far part": far_part_p,
    "tail counts": tail_counts_p,
    "angle": angle_p,
    "radius": radius_p,
}


@pytest.mark.parametrize("check", SHAPES.values(), ids=SHAPES.keys())
def test_the_noise_of_a_run_is_gaussian(noises: Noises, check: Callable[[Floats], float]) -> None:
    assert check(np.concatenate(list(noises.values()))) > LEVEL
    assert min(map(check, noises.values())) * len(noises) > LEVEL


FAULTS: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "one per cent too small": ("normal", lambda z: 0.99 * z),
    "a mean of σ/200": ("normal", lambda z: z + 0.005),
    "cut at 4σ": ("tail counts", lambda z: np.clip(z, -4.0, 4.0)),
    "cut at 3.5σ": ("far part", lambda z: np.clip(z, -3.5, 3.5)),
    "Student's tails": ("far part", lambda z: student.ppf(norm.cdf(z), 30)),
    # 7 bits move the distribution by 2⁻⁸, which is 4/√n for a million radii; 8 bits would show by luck alone.
    "radius from 7-bit words": ("radius", lambda z: coarse(z, 7)),
    "one sign a pair": ("angle", lambda z: np.abs(z) * np.repeat(np.sign(z[::2]), 2)),
}


def coarse(z: Floats, bits: int) -> Floats:
    """Normals whose radius came from so few bits."""
    radius = np.hypot(z[0::2], z[1::2])
    word = np.floor(np.exp(-(radius**2) / 2) * 2**bits)
    return z * np.repeat(np.sqrt(-2 * np.log((word + 0.5) / 2**bits)) / radius, 2)


@pytest.mark.parametrize(("check", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_noise_of_another_shape_is_seen(
    noises: Noises, check: str, fault: Callable[[Floats], Floats]
) -> None:
    assert SHAPES[check](fault(np.concatenate(list(noises.values())))) < LEVEL


# --- beyond what any sample shows


def of_words(monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[int, int]]) -> Floats:
    """The first normal of each (radius word, angle word), by the real function on chosen keystream words."""
    words = np.array(pairs, dtype=np.uint64).reshape(-1)
    with monkeypatch.context() as patched:
        patched.setattr(streams, "keystream", lambda _, count, first: words[first * 8 :][:count])
        return gaussian(bytes(32), len(words))[0::2]


def test_beyond_six_sigma_every_distance_has_as_many_words_as_its_probability_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for distance in np.arange(6.0, 9.45, 0.05):
        exact = math.exp(-(distance**2) / 2) * 2.0**64  # how many of 2⁶⁴ radii should lie beyond
        words = max(1, round(exact))
        last_beyond, first_within = of_words(monkeypatch, [(words - 1, 0), (words, 0)])
        # (n + ½)/2⁶⁴: the word before the edge lies beyond it, the next one does not, to half a word
        assert last_beyond > math.sqrt(-2 * math.log((words - 0.49) / 2**64))
        assert first_within < math.sqrt(-2 * math.log((words + 0.49) / 2**64))
        assert abs(words - exact) <= 0.5 or distance > 9.41


@pytest.mark.parametrize(("distance", "error"), [(8.0, 1e-6), (8.5, 1e-4), (9.0, 0.01), (9.2, 0.05)])
def test_a_normals_own_tail_is_right_where_its_words_can_be_counted(
    monkeypatch: pytest.MonkeyPatch, distance: float, error: float
) -> None:
    beyond = math.ceil(math.exp(-(distance**2) / 2) * 2.0**64)
    radii = of_words(monkeypatch, [(word, 0) for word in range(beyond + 1)])
    radii = radii[radii > distance]
    # A point at radius r has its first coordinate beyond `distance` for this part of all angles, on both sides.
    probability = float((2 / np.pi * np.arccos(distance / radii)).sum()) / 2.0**64
    assert probability == pytest.approx(2 * norm.sf(distance), rel=error)


def test_the_farthest_normals_are_reached_in_every_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    quarter = 2**62
    assert of_words(monkeypatch, [(0, 0)])[0] == pytest.approx(MAX_NORMAL, rel=1e-15)
    assert of_words(monkeypatch, [(0, 2 * quarter)])[0] == pytest.approx(-MAX_NORMAL, rel=1e-15)
    for side, angle in ((1, quarter), (-1, 3 * quarter)):
        words = np.array([0, angle], dtype=np.uint64)
        monkeypatch.setattr(streams, "keystream", lambda *_, w=words: w)
        assert gaussian(bytes(32), 2)[1] == pytest.approx(side * MAX_NORMAL, rel=1e-15)


@pytest.mark.parametrize("distance", [6.0, 7.0, 8.0, 9.0, 9.4])
@pytest.mark.parametrize("sigma", [0.5, 12.0])
def test_a_tail_of_chosen_words_arrives_in_the_sum_whole(
    monkeypatch: pytest.MonkeyPatch, distance: float, sigma: float
) -> None:
    word = max(0, round(math.exp(-(distance**2) / 2) * 2.0**64) - 1)
    words = np.array([word, 0], dtype=np.uint64)
    monkeypatch.setattr(streams, "keystream", lambda *_: words)
    total = torch.tensor([123, -456])
    moved = add_noise(total, sigma, bytes(32)) - total
    assert moved[0].item() / GRID >= distance * sigma
    assert moved[0].item() == round(math.sqrt(-2 * math.log((word + 0.5) / 2**64)) * (sigma * GRID))


# --- independence


def test_noise_of_other_phases_steps_and_incarnations_is_uncorrelated_at_every_shift(noises: Noises) -> None:
    """Pairs of events, over all 2¹⁷ shifts: a keystream used twice shows wherever its second use begins."""
    pairs = list(itertools.combinations(noises.values(), 2))
    most = max(largest_correlation(one, other) for one, other in pairs)
    assert most < farthest_normal(len(pairs) * PARAMETERS)


def test_noise_of_one_release_is_uncorrelated_between_parameters(noises: Noises) -> None:
    most = max(map(largest_correlation, noises.values()))
    assert most < farthest_normal(len(noises) * PARAMETERS // 2)


def test_sizes_of_noise_are_uncorrelated_too(noises: Noises) -> None:
    sizes = [(z**2 - 1) / math.sqrt(2) for z in noises.values()]
    # Squares of normals have a heavier mean than normals: 2¹⁷ of them are normal to 10 % at 6.5 σ.
    assert max(map(largest_correlation, sizes)) < 1.1 * farthest_normal(len(sizes) * PARAMETERS // 2)
    pairs = list(itertools.combinations(sizes, 2))
    assert max(largest_correlation(*pair) for pair in pairs) < 1.1 * farthest_normal(len(pairs) * PARAMETERS)


@pytest.mark.parametrize("shift", [0, 1, 8, 12_345])
def test_a_keystream_used_twice_is_seen_wherever_it_begins(noises: Noises, shift: int) -> None:
    one, other = noises[0, "private", 0], noises[0, "private", 1].copy()
    other[shift : shift + 4000] = one[:4000]
    assert largest_correlation(one, other) > farthest_normal(10**8)


def test_no_two_releases_of_a_run_share_a_normal(noises: Noises) -> None:
    every = np.concatenate([z[:4096] for z in noises.values()])
    assert len(np.unique(every)) == len(every)
