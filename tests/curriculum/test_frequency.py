"""The frequency phase: an embedding of norm at most 1 per unit, released once, and images that depend on it alone."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp.config.config import Config
from curriculumdp.curriculum import embedding, frequency, recharge
from curriculumdp.curriculum import fingerprint as fingerprints
from curriculumdp.curriculum.embedding import Embedding, embedded_sum, unit_vectors
from curriculumdp.curriculum.frequency import FrequencyPhase
from curriculumdp.curriculum.run import OutOfBudget, Run
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.data.images import ImageSet
from curriculumdp.ledger.run_ledger import BudgetSpent, Ledger
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.release.agreement import config_problems
from curriculumdp.release.certificate import PublicEmbedding
from curriculumdp.release.verify import read_certificate
from curriculumdp.world import World, one_process
from dpkernels.grid import GRID
from tests.support import runs
from tests.support.frequency import (
    CHARGES,
    hostile,
    plan_without_solving,
    with_frequency,
    without_solving,
)
from tests.support.one_step import charged_run, nobody
from tests.support.runs import (
    NONCE,
    SECRET,
    finish,
    in_child,
    in_world,
    kill_at,
    outcome_of,
)

FEATURES = 30
MADE = Embedding(seed=3, features=FEATURES, bandwidth=2.5, pixels=64, classes=3)
LIMIT = 2**72


@pytest.fixture(scope="module", autouse=True)
def solve_once() -> Iterator[None]:
    """Plans without solving, in place of this folder's fixture of the same name."""
    with without_solving():
        yield


def all_units(images: ImageSet) -> Tensor:
    return torch.arange(images.unit_count)


def squared_steps(moved: Tensor) -> int:
    return sum(int(n) ** 2 for n in moved.tolist())


def rebuilt(made: Embedding) -> np.ndarray:
    """W in radians, float64 [F, pixels], as the docstrings tell a third party to make it."""
    digest = hashlib.sha256(f"{made.seed}:frequency:0".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    normals = torch.randn(made.pixels, made.features, generator=generator, dtype=torch.float64)
    return (normals.numpy() / made.bandwidth).T


def oracle(made: Embedding, images: ImageSet) -> np.ndarray:
    """Each unit's mean of z(x) ⊗ one-hot(label), float64 [units, classes, 2F], one image at a time."""
    waves, means = rebuilt(made), np.zeros((images.unit_count, made.classes, 2 * made.features))
    for image, label, unit in zip(images.images, images.labels, images.units, strict=True):
        angles = waves @ (image.reshape(-1) / 255)
        z = np.concatenate([np.cos(angles), np.sin(angles)]) / sqrt(made.features)
        means[unit, label] += z / images.counts[unit]
    return means


def test_the_sum_is_the_oracles_to_the_precision_of_its_angles():
    images = hostile()
    total = embedded_sum(MADE, images, all_units(images)).double() / GRID
    expected = torch.from_numpy(oracle(MADE, images).sum(0)).flatten()
    owners = int((images.counts > 0).sum())
    error = (pi / 2**15 + 2**-12) / sqrt(FEATURES)  # of an angle, and of the clip's margin
    torch.testing.assert_close(total, expected, rtol=0, atol=owners * error)
    assert expected.abs().max() > 100 * error, "the test has no power"


def test_a_units_vector_is_a_mean_and_has_the_norm_of_one_image_at_most():
    images = hostile()
    vectors = unit_vectors(MADE, MADE.projection(), images, all_units(images))
    norms = torch.linalg.vector_norm(vectors.double(), dim=1)
    assert norms.max() <= 1 + 1e-6
    torch.testing.assert_close(norms[[0, 3, 5, 7]], torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    assert norms[1] == 0
    expected = torch.from_numpy(oracle(MADE, images)).flatten(1)
    torch.testing.assert_close(vectors.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("unit", [0, 2, 3, 4, 6])
def test_two_neighbours_sums_differ_by_exactly_the_units_own_vector_of_norm_1_at_most(unit):
    """Whatever the unit owns, and however its absence moves other images within a batch."""
    images = hostile()
    moved = embedded_sum(MADE, images, all_units(images)) - embedded_sum(
        MADE, images.without_unit(unit), all_units(images)
    )
    alone = embedded_sum(MADE, images, torch.tensor([unit]))
    assert torch.equal(moved, alone)
    assert 0 < squared_steps(moved) <= LIMIT


def test_a_vector_longer_than_promised_is_clipped(monkeypatch):
    original = embedding.unit_vectors
    monkeypatch.setattr(embedding, "unit_vectors", lambda *given: 3 * original(*given))
    assert LIMIT / 2 < squared_steps(embedded_sum(MADE, hostile(), torch.tensor([3]))) <= LIMIT


@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_the_sum_does_not_depend_on_how_images_are_batched(monkeypatch, at_once):
    images = hostile(channels=3)
    made = replace(MADE, pixels=192)
    expected = embedded_sum(made, images, all_units(images))
    monkeypatch.setattr(embedding, "IMAGES_AT_ONCE", at_once)
    assert torch.equal(embedded_sum(made, images, all_units(images)), expected)


def phase_of(images: ImageSet, folder: Path, secret: bytes = SECRET) -> tuple[FrequencyPhase, Run]:
    with without_solving():
        run, _ = charged_run(images, with_frequency(folder), folder / "ledger", secret=secret)
    return FrequencyPhase(run), run


def test_the_projection_depends_neither_on_the_data_nor_on_the_secret(tmp_path, digits):
    one, _ = phase_of(digits, tmp_path / "one")
    two, _ = phase_of(nobody(), tmp_path / "two", secret=bytes(32))
    assert one.embedding == two.embedding
    assert torch.equal(one.embedding.projection(), two.embedding.projection())


def test_the_projection_is_what_a_third_party_builds_from_the_certificate():
    made = torch.from_numpy(rebuilt(MADE).T.copy())
    torch.testing.assert_close(MADE.radians(), made, rtol=0, atol=2 * pi * 255 / 2**32)


def test_a_release_adds_the_promised_noise_and_another_one_for_another_secret(tmp_path):
    drawn = [
        phase.release(run, 0).double() / GRID / 8.0
        for phase, run in (
            phase_of(nobody(), tmp_path / str(number), secret=bytes([number] * 32)) for number in range(6)
        )
    ]
    values = torch.cat(drawn)
    deviations = (values.square().mean().item() - 1) / sqrt(2 / len(values))
    assert abs(deviations) < 5
    assert abs(torch.corrcoef(torch.stack(drawn[:2]))[0, 1]) < 5 / sqrt(len(drawn[0]))


def test_a_release_is_one_entry_of_the_ledger_at_a_rate_of_1(tmp_path):
    phase, run = phase_of(nobody(), tmp_path)
    phase.release(run, 0)
    assert run.ledger is not None
    assert run.ledger.events() == [PrivacyEvent("frequency", "gaussian", 1.0, 8.0, 1)]


def test_a_release_that_the_budget_does_not_admit_is_not_made(tmp_path, monkeypatch):
    phase, run = phase_of(nobody(), tmp_path)
    monkeypatch.setattr(Ledger, "charge", lambda *_, **__: (_ for _ in ()).throw(BudgetSpent("spent")))
    with pytest.raises(OutOfBudget):
        phase.release(run, 0)


@pytest.mark.parametrize("data", ["nobody", "half"])
def test_the_images_are_a_function_of_the_noisy_sum_and_the_config(tmp_path, digits, monkeypatch, data):
    """With the sum frozen, other data give the same images to the bit: also where fewer units own an image."""
    frozen = torch.arange(10 * 2 * 20) * 2**30
    monkeypatch.setattr(Run, "noisy_sum", lambda *_: frozen.clone())
    half = ImageSet(digits.images[:700], digits.labels[:700], digits.units[:700], 1437)
    made = []
    for name, images in (("digits", digits), (data, nobody() if data == "nobody" else half)):
        with without_solving():
            run, state = charged_run(images, with_frequency(tmp_path), tmp_path / name)
        FrequencyPhase(run).step(run, state, 0)
        made.append(state.frequency)
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].labels, made[1].labels)
    assert len(made[0].images) == 25
    assert made[0].images.float().std() > 0


def charges_of(release: Path) -> list[dict[str, object]]:
    lines = (release.parent / "private" / "ledger.jsonl").read_text().splitlines()
    return [body for line in lines if (body := json.loads(line)["body"])["kind"] == "charge"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, solve_once: None) -> Path:
    torch.set_num_threads(1)
    with without_solving():
        return finish(with_frequency(tmp_path_factory.mktemp("whole") / "run"))


def test_a_run_charges_one_embedding_at_a_rate_of_1(release):
    (entry,) = (entry for entry in charges_of(release) if entry["phase"] == "frequency")
    stated = {key: entry[key] for key in ("step", "sample_rate", "noise_multiplier", "clip_norm")}
    assert stated == {"step": 0, "sample_rate": 1.0, "noise_multiplier": 8.0, "clip_norm": 1.0}
    assert len(charges_of(release)) == CHARGES


def test_the_certificate_costs_what_was_planned_and_names_the_embedding(release):
    certificate = read_certificate(release)
    planned = plan_without_solving(with_frequency(release.parent))
    assert certificate.accounting.epsilon_of_events == pytest.approx(planned.epsilon, rel=1e-9)
    (event,) = (row for row in certificate.guarantee.events if row.name == "frequency")
    assert (event.mechanism, event.sample_rate, event.count) == ("gaussian", 1.0, 1)
    bandwidth = sqrt(105 * 64 / 784)
    assert certificate.guarantee.public.embedding == PublicEmbedding(features=20, bandwidth=bandwidth, seed=0)
    assert "20 random frequencies" in (release / "README.md").read_text()
    assert (release / "frequency.png").is_file()


@pytest.mark.parametrize(
    "changes",
    [None, {"seed": 1}, {"features": 21}, {"bandwidth": 3.0}],
    ids=lambda changes: next(iter(changes), "") if changes else "none",
)
def test_another_embedding_than_the_configs_is_noticed(release, changes):
    guarantee = read_certificate(release).guarantee
    assert config_problems(release, guarantee) == []
    named = guarantee.public.embedding
    assert named is not None
    other = named.model_copy(update=changes) if changes else None
    edited = guarantee.model_copy(update={"public": guarantee.public.model_copy(update={"embedding": other})})
    assert "frequency embedding" in config_problems(release, edited)[0]


def test_a_certificate_without_the_embeddings_event_is_noticed(release):
    guarantee = read_certificate(release).guarantee
    rows = tuple(row for row in guarantee.events if row.name != "frequency")
    problems = config_problems(release, guarantee.model_copy(update={"events": rows}))
    assert any("frequency" in problem for problem in problems)


def test_two_processes_give_the_same_run_to_the_bit(release, tmp_path):
    assert in_world(2, lambda world: finish(with_frequency(tmp_path), world)) == [0, 0]
    assert outcome_of(tmp_path / "release") == outcome_of(release)


# Each process first does a step of each phase on made images, which counts where it is counted.
MOMENTS: dict[str, Callable[[], None]] = {
    "charged, its noise not drawn": lambda: kill_at(Ledger, "charge", 4, after=True),
    "released, not fitted": lambda: kill_at(frequency, "fit_generator", 2),
    "fitted, not drawn": lambda: kill_at(frequency, "draw_images", 2),
    "drawn, not saved": lambda: kill_at(FrequencyPhase, "sync", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_the_run_never_killed(tmp_path, release, moment):
    config = with_frequency(tmp_path / "run")

    def killed() -> None:
        MOMENTS[moment]()
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    resumed = finish(config)
    whole = outcome_of(release)
    assert {key: outcome_of(resumed)[key] for key in ("weights", "frequency", "certificate")} == {
        key: whole[key] for key in ("weights", "frequency", "certificate")
    }
    assert len(charges_of(resumed)) == CHARGES


@pytest.fixture
def preempted(tmp_path: Path) -> Config:
    """A run told to stop while it fitted the generator."""
    config = with_frequency(tmp_path / "run")

    def stopped() -> None:
        original, calls = frequency.fit_generator, []

        def signalled(*given: object, **options: object) -> object:
            calls.append(None)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*given, **options)

        frequency.fit_generator = signalled  # in a child
        outcome = run_curriculum(config, one_process(), secret=RunSecret.from_bytes(SECRET), nonce=NONCE)
        raise SystemExit(outcome.exit_code)

    assert in_child(stopped) == 143
    return config


def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FrequencyPhase, "release", lambda *_: pytest.fail("the embedding was in the checkpoint")
    )


def test_a_fit_told_to_stop_keeps_the_embedding_which_is_never_computed_again(
    preempted, release, monkeypatch
):
    never_again(monkeypatch)
    resumed = finish(preempted)
    assert outcome_of(resumed)["weights"] == outcome_of(release)["weights"]
    assert len(charges_of(resumed)) == CHARGES


def test_an_embedding_that_was_saved_is_not_charged_again_on_another_machine_nor_said_to_be(
    preempted, monkeypatch
):
    never_again(monkeypatch)
    monkeypatch.setattr(
        recharge, "_cost", lambda *_: "1"
    )  # where it is said: the accountants' figures take long
    monkeypatch.setattr(recharge, "_lost", lambda *_: 0)
    original = fingerprints._machine
    monkeypatch.setattr(fingerprints, "_machine", lambda device: original(device) | {"torch": "another"})
    resumed = finish(preempted)  # RechargeRefused, if it would be
    assert [row["incarnation"] for row in charges_of(resumed)] == [0] * 4 + [1] * 6


def test_a_world_of_two_sums_every_unit_once(tmp_path, digits, monkeypatch):
    """The ranks' parts add up to one process's sum."""
    config = with_frequency(tmp_path)
    monkeypatch.setattr(Run, "noisy_sum", lambda _, event, step, clip_norm, mine: mine)
    parts = []
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        with without_solving():
            run, _ = runs.bare_run(digits, World(rank, size, torch.device("cpu")), config)
        parts.append(FrequencyPhase(run).release(run, 0))
    assert torch.equal(parts[0], parts[1] + parts[2])
