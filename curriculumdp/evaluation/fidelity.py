"""Fidelity: how close synthetic images are to real ones in the feature space of a NAMED network.

The network is an Inception with weights from the user (`inception`), or a small classifier for the same kind of
images, trained on images that are not compared. The Fréchet distance is called FD; only under the standard
Inception weights is it called FID. Features are float64 [N, D].
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from curriculumdp.evaluation.classifiers import FEATURES, SMALL, SmallCNN, fit, outputs_of
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet

KERNEL_BLOCK, KERNEL_BLOCKS = 1000, 20  # images per block and number of blocks, kernel distance
NEIGHBOURS = 3  # k of precision and recall (Kynkäänniemi et al. 2019)
MAX_NEIGHBOURS = 10_000  # maximum number of images per set in precision and recall
MIN_IMAGES = 10
AT_ONCE = 1000


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose last hidden layer is the feature space; `sha256` is that of its weights.

    A network trained here divides features by their root mean square over its training images, so that distances
    under two such networks have at least the same scale. `distance` is the name its Fréchet distance may carry.
    """

    name: str
    trained_on: str
    sha256: str
    features: Callable[[np.ndarray], np.ndarray]
    distance: Literal["fd", "fid"] = "fd"

    def facts(self) -> dict[str, str]:
        return {"name": self.name, "trained_on": self.trained_on, "sha256": self.sha256}


def train_features(data: LabelledSet, device: torch.device, seed: int = 0) -> FeatureNetwork:
    """Train the small CNN as a feature network: a function of `data`, `seed` and the machine's rounding.

    It learns the classes or, where there is one, which way up an image is (Gidaris et al. 2018).
    """
    if len(data) < MIN_IMAGES:
        raise EvaluationError(
            f"{data.origin}: a feature network needs at least {MIN_IMAGES} images: name a larger set"
        )
    turned = len(np.unique(data.labels)) < 2
    if turned:
        data = _turned(data)
    _, channels, size, _ = data.images.shape
    classes = int(data.labels.max()) + 1
    net = fit(lambda: SmallCNN(channels, classes, size), data, SMALL, seed, device)
    assert isinstance(net, SmallCNN)
    scale = float(np.sqrt(np.square(outputs_of(net.features, data.images, device)).mean())) or 1.0
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return FeatureNetwork(
        f"small CNN, {FEATURES} features",
        f"{len(data)} images ({data.origin})" + (", which way up they are" if turned else ""),
        digest.hexdigest(),
        lambda images: outputs_of(net.features, images, device) / scale,
    )


def _turned(data: LabelledSet) -> LabelledSet:
    """Return every image in four directions, labelled by the number of quarter turns."""
    images = [np.rot90(data.images, turns, (2, 3)) for turns in range(4)]
    return LabelledSet(np.concatenate(images), np.repeat(np.arange(4), len(data)), data.origin)


def fidelity(network: FeatureNetwork, real: LabelledSet, synthetic: LabelledSet) -> dict[str, float]:
    """Return fd (or fid, see `network.distance`), kid, precision and recall. As private as `real` and the network."""
    return fidelities(network, real, [synthetic])[0]


def fidelities(
    network: FeatureNetwork, real: LabelledSet, synthetic: Sequence[LabelledSet]
) -> list[dict[str, float]]:
    """Return `fidelity` of each synthetic set; the real images go through the network once."""
    if min(len(real), *(len(some) for some in synthetic)) < MIN_IMAGES:
        raise EvaluationError(
            f"fidelity needs at least {MIN_IMAGES} images on either side: name a larger set or ask for more images"
        )
    a = network.features(real.images)
    return [_measured(network.distance, a, network.features(some.images)) for some in synthetic]


def _measured(distance: str, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    precision, recall = precision_recall(a, b)
    return {
        distance: frechet_distance(a, b),
        "kid": kernel_distance(a, b),
        "precision": precision,
        "recall": recall,
    }


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |μa − μb|² + tr(Σa + Σb − 2(Σa Σb)^½) (Heusel et al. 2017), biased upwards for few images."""
    mean_term = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    if max(len(a), len(b)) <= a.shape[1]:
        # Fewer images than features: the roots of the eigenvalues of Σa Σb are the singular values of X Yᵀ, and the
        # covariances' many zero eigenvalues add no rounding error.
        x, y = ((some - some.mean(0)) / np.sqrt(len(some) - 1) for some in (a, b))
        cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
        return max(0.0, mean_term + float(np.square(x).sum() + np.square(y).sum() - 2 * cross))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # Σa^½ Σb Σa^½ has the eigenvalues of Σa Σb and is symmetric, so its root needs no complex numbers.
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return max(0.0, mean_term + float(np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def kernel_distance(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Return KID, the unbiased squared MMD under the kernel (x·y/D + 1)³ (Bińkowski et al. 2018); may be negative."""
    rng = np.random.default_rng(seed)
    blocks = KERNEL_BLOCKS if max(len(a), len(b)) > KERNEL_BLOCK else 1
    parts = [(rng.permutation(a)[:KERNEL_BLOCK], rng.permutation(b)[:KERNEL_BLOCK]) for _ in range(blocks)]
    return float(np.mean([_squared_mmd(x, y) for x, y in parts]))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray((u @ v.T / u.shape[1] + 1) ** 3)

    def without_diagonal(k: np.ndarray) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    return without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def precision_recall(real: np.ndarray, synthetic: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return (fraction of synthetic images on the real manifold, fraction of real images on the synthetic one).

    A manifold is the union of balls around the images of a set, each reaching to its k-th nearest neighbour in that
    set (Kynkäänniemi et al. 2019). Both sets are reduced to the same number of images, on which the values depend.
    """
    rng = np.random.default_rng(seed)
    count = min(len(real), len(synthetic), MAX_NEIGHBOURS)
    a, b = rng.permutation(real)[:count], rng.permutation(synthetic)[:count]
    return _fraction_inside(b, a), _fraction_inside(a, b)


def _fraction_inside(points: np.ndarray, manifold: np.ndarray) -> float:
    inside, other = torch.from_numpy(points), torch.from_numpy(manifold)
    k = min(NEIGHBOURS, len(other) - 1)
    # The nearest image in its own set is the image itself, hence the (k+1)-th smallest.
    radii = torch.cat(
        [_distances(part, other).kthvalue(k + 1, dim=1).values for part in other.split(AT_ONCE)]
    )
    hits = [(_distances(part, other) <= radii).any(1) for part in inside.split(AT_ONCE)]
    return float(torch.cat(hits).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # torch's fast method loses digits to cancellation, which can put an image outside its own ball.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
