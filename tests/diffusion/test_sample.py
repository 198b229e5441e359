"""Sampling finds the distribution that the network knows, and repeats itself."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curriculumdp.config.values import SamplerName
from curriculumdp.diffusion.guidance import Guided
from curriculumdp.diffusion.networks import build_unet
from curriculumdp.diffusion.pictures import image_grid, npz_bytes
from curriculumdp.diffusion.sample import SAMPLERS, SamplingError, balanced_labels, denoise, sample_images

MEAN, STD, SIGMA_DATA = 0.2, 0.25, 3**-0.5


class ExactNetwork(nn.Module):
    """The network F for which the preconditioned denoiser of N(MEAN, STD²) pixels is exact."""

    device = torch.device("cpu")
    config = SimpleNamespace(in_channels=1, sample_size=16)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        sigma = torch.exp(4 * timestep).reshape(-1, 1, 1, 1)
        total = sigma**2 + SIGMA_DATA**2
        noisy = sample * total.sqrt()
        exact = (STD**2 * noisy + sigma**2 * MEAN) / (STD**2 + sigma**2)
        return ((exact - SIGMA_DATA**2 / total * noisy) * total.sqrt() / (sigma * SIGMA_DATA),)


@pytest.mark.parametrize(
    ("sampler", "steps", "error"),
    [("dpm", 40, 0.01), ("euler", 100, 0.01), ("heun", 40, 0.01), ("churn", 100, 0.01)],
)
def test_exact_network_gives_its_distribution(sampler: str, steps: int, error: float) -> None:
    noise = torch.randn(1 + steps, 64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(64, dtype=torch.int64)
    images = denoise(ExactNetwork(), noise, labels, steps=steps, sampler=sampler, sigma_data=SIGMA_DATA)
    assert abs(images.std() - STD) < error
    assert abs(images.mean() - MEAN) < error


def test_churn_is_heun_where_it_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.randn(9, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(4, dtype=torch.int64)

    def images(sampler: str) -> Tensor:
        return denoise(ExactNetwork(), noise, labels, steps=8, sampler=sampler, sigma_data=SIGMA_DATA)

    assert not torch.equal(images("churn"), images("heun"))
    monkeypatch.setattr("curriculumdp.diffusion.sample.CHURN", 0.0)
    assert torch.equal(images("churn"), images("heun"))


def draw(net: nn.Module, count: int, batch: int, sampler: str = "dpm", seed: int = 3) -> np.ndarray:
    return sample_images(
        net, balanced_labels([0, 1, 2], count), steps=4, sampler=sampler, sigma_data=SIGMA_DATA,
        generator=torch.Generator().manual_seed(seed), batch=batch,
    )  # fmt: skip


@pytest.mark.parametrize("sampler", ["dpm", "euler", "heun", "churn"])
def test_samples_repeat_and_do_not_depend_on_the_batch(sampler: str) -> None:
    torch.manual_seed(0)
    net = build_unet((8, 16), 8, 3, 3, True, blocks=1)
    together = draw(net, 7, 7, sampler)
    assert together.shape == (7, 8, 8, 3)
    assert together.dtype == np.uint8
    torch.manual_seed(99)
    assert np.array_equal(together, draw(net, 7, 7, sampler))
    assert np.abs(together.astype(int) - draw(net, 7, 3, sampler)).max() <= 1
    assert np.abs(together[:5].astype(int) - draw(net, 5, 5, sampler)).max() <= 1
    assert not np.array_equal(together, draw(net, 7, 7, sampler, seed=4))


def test_no_labels_give_no_images() -> None:
    assert draw(build_unet((8,), 8, 1, 3, True, blocks=1), 0, 4).shape == (0, 8, 8, 1)


def test_bad_requests_and_diverged_networks_end_in_one_line() -> None:
    net = build_unet((8,), 8, 1, 3, True, blocks=1)
    with pytest.raises(SamplingError, match="choose from dpm, heun, euler, churn"):
        draw(net, 1, 1, "ddim")
    with pytest.raises(SamplingError, match="at least 2"):
        sample_images(
            net, torch.tensor([0]), steps=1, sampler="dpm", sigma_data=1.0, generator=torch.Generator()
        )
    with torch.no_grad():
        net.conv_out.bias.fill_(float("nan"))
    with pytest.raises(SamplingError, match="not finite"):
        draw(net, 1, 1)


def test_labels_are_balanced() -> None:
    assert balanced_labels([4, 7], 5).tolist() == [4, 7, 4, 7, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_image_in_its_place(channels: int) -> None:
    images = np.stack([np.full((8, 8, channels), 20 * i, np.uint8) for i in range(5)])
    sheet = np.asarray(image_grid(images, columns=3))
    assert sheet.shape[:2] == (2 * 34 + 2, 3 * 34 + 2)
    shown = [sheet[row * 34 + 10, column * 34 + 10] for row in range(2) for column in range(3)]
    assert [int(np.max(value)) for value in shown] == [0, 20, 40, 60, 80, 255]


def test_saved_images_come_back() -> None:
    images, labels = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1), np.array([3, 1])
    with np.load(io.BytesIO(npz_bytes(images, labels))) as kept:
        assert np.array_equal(kept["images"], images)
        assert kept["labels"].tolist() == [3, 1]


class Constant(torch.nn.Module):
    """A network whose output is its label everywhere."""

    def forward(self, x, t, class_labels, return_dict):
        return (torch.ones_like(x) * class_labels.view(-1, 1, 1, 1),)


@pytest.mark.parametrize(("strength", "expected"), [(1.0, 2.0), (0.0, 5.0), (3.0, -4.0)])
def test_guidance_moves_away_from_the_null_class(strength: float, expected: float) -> None:
    net = Guided(Constant(), strength, null_class=5)
    output = net(torch.zeros(3, 1, 2, 2), torch.zeros(3), class_labels=torch.full((3,), 2))[0]
    assert torch.equal(output, torch.full((3, 1, 2, 2), expected))


def test_the_samplers_are_those_that_a_config_may_name():
    """And those of the command line, which names them itself: it answers `--help` without a library."""
    assert tuple(SAMPLERS) == get_args(SamplerName)
    command = Path(__file__).parents[2] / "curriculumdp" / "commands" / "sample.py"
    assert str(tuple(SAMPLERS)).replace("'", '"') in command.read_text(encoding="utf-8")
