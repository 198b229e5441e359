"""python bench/imbalance.py [--rare N]: central images of a common and a rare class, with and without noisy counts.

Scikit-learn's digits, which are public: class 0 has all digits but the eights, class 1 has N eights. For each weight of
the noisy counts it prints, by class, the contrast of the central images and their error against the class's true mean,
as medians over 200 queries. No run, no ledger: the images alone.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from curriculumdp.config.data_section import DataConfig  # noqa: E402
from curriculumdp.config.sections import CentralConfig  # noqa: E402
from curriculumdp.curriculum.central import (  # noqa: E402
    CentralQuery,
    clip_norm_of,
    count_weight_of,
    images_of_sum,
    query_sum,
)
from curriculumdp.data.images import ImageSet  # noqa: E402
from curriculumdp.data.sources import load_images  # noqa: E402
from curriculumdp.privacy.grid_noise import add_noise  # noqa: E402

QUERIES = 200
RATE, NOISE = 0.5, 4.0
EIGHT = 8


def imbalanced(rare: int) -> ImageSet:
    """Return all digits but the eights as class 0, and `rare` eights as class 1."""
    digits = load_images(source="digits", units=1437, classes=10, channels=1, size=8)
    eights = np.flatnonzero(digits.labels == EIGHT)[:rare]
    rows = np.concatenate([np.flatnonzero(digits.labels != EIGHT), eights])
    labels = (digits.labels[rows] == EIGHT).astype(np.int64)
    return ImageSet(digits.images[rows], labels, np.arange(len(rows)), len(rows))


def measured(images: ImageSet, weight: float | None, floor: float = 1.0) -> np.ndarray:
    """Return, by class, (contrast of a central image over that of the true mean, RMS error in [0, 1]), medians."""
    units = images.unit_count
    data = DataConfig(source="digits", units=units, classes=2, channels=1, size=8)
    config = CentralConfig(
        sample_rate=RATE, noise_multiplier=NOISE, queries=QUERIES, size=8, count_weight=weight
    )
    query = CentralQuery(
        "mean",
        8,
        1,
        2,
        1,
        clip_norm_of(config, data),
        count_weight_of(config, data),
        (RATE * units / 2,) * 2,
        floor,
    )
    true = np.stack([images.images[images.labels == label].mean(0) / 255 for label in (0, 1)])
    rng = np.random.default_rng(0)
    rows = []
    for number in range(QUERIES):
        sampled = torch.from_numpy(np.flatnonzero(rng.random(units) < RATE))
        noisy = add_noise(query_sum(query, images, sampled), NOISE, number.to_bytes(32, "big"))
        made = images_of_sum(query, noisy, 8, 1).numpy() / 255
        error = np.sqrt(np.square(made - true).mean((1, 2, 3)))
        rows.append([made.std((1, 2, 3)) / true.std((1, 2, 3)), error])
    return np.median(np.array(rows), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rare", type=int, default=68, help="images of the rare class (68: 5 %%)")
    images = imbalanced(parser.parse_args().rare)
    counts = np.bincount(images.labels)
    print(
        f"{counts[0]} to {counts[1]} images, sample rate {RATE}, noise multiplier {NOISE}, {QUERIES} queries"
    )
    print("count_weight  contrast common / rare   error common / rare")
    for weight in (0.0, None, 4.0):
        contrast, error = measured(images, weight)
        name = "default" if weight is None else f"{weight:g}"
        print(f"{name:12s}  {contrast[0]:8.2f} / {contrast[1]:<11.2f} {error[0]:8.3f} / {error[1]:.3f}")


if __name__ == "__main__":
    main()
