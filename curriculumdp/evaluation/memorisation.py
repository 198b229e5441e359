"""Memorisation: are synthetic images nearer to training images than fresh real images are? All PRIVATE.

Differential privacy bounds what can be inferred; this is only an informal check in addition to it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from curriculumdp.evaluation.labelled import LabelledSet

QUANTILES = {"nearest": 0.0, "1 %": 0.01, "5 %": 0.05, "median": 0.5}
COPY_RATIO = 1 / 3  # a copy is 3 times nearer to one training image than to the next (Yoon et al. 2023)
AT_ONCE = 500


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images: rows int64 [N], of the nearest; first, second float64 [N], the two distances.

    Distances are root mean squares over pixels in [0, 1]: 0 for the same image, 1 for black against white.
    """

    rows: np.ndarray
    first: np.ndarray
    second: np.ndarray


def nearest_neighbours(images: LabelledSet, train: LabelledSet) -> Neighbours:
    """Find the two nearest training images of each image by pixel distance."""
    queries, stored = torch.from_numpy(images.pixels()), torch.from_numpy(train.pixels())
    rows, distances = [], []
    for part in queries.split(AT_ONCE):
        near = torch.cdist(part, stored).topk(min(2, len(train)), largest=False).indices
        # cdist's fast method loses digits to cancellation near 0, where copies are.
        exact = (part[:, None].double() - stored[near].double()).square().mean(-1).sqrt()
        exact, order = exact.sort(1)
        rows.append(near.gather(1, order)[:, 0])
        distances.append(exact)
    both = torch.cat(distances).numpy()
    return Neighbours(torch.cat(rows).numpy(), both[:, 0], both[:, -1])


def memorisation(synthetic: Neighbours, held_out: Neighbours) -> dict[str, Any]:
    """Return metrics of synthetic images and, for comparison, of held-out real ones.

    nearer: the probability that a synthetic image is nearer to the training set than a held-out one (ties count
    half): 0.5 if alike, 1 if all are nearer. below: the fraction nearer than the held-out images' 1 % quantile.
    copies: the fraction much nearer to one training image than to the next. identical: how many equal one.
    """
    limit = float(np.quantile(held_out.first, 0.01))
    return {
        "measure": "RMS distance over pixels in [0, 1] to the nearest training image",
        "synthetic": _figures(synthetic, limit),
        "held_out": _figures(held_out, limit),
        "nearer": _probability_below(synthetic.first, held_out.first),
    }


def _figures(found: Neighbours, limit: float) -> dict[str, Any]:
    return {
        "images": len(found.first),
        "quantiles": {name: float(np.quantile(found.first, q)) for name, q in QUANTILES.items()},
        "below": float((found.first < limit).mean()),
        "copies": float((found.first <= COPY_RATIO * found.second).mean()),
        "identical": int((found.first == 0).sum()),
    }


def _probability_below(a: np.ndarray, b: np.ndarray) -> float:
    """Return P(a < b) + P(a = b)/2 for a random pair."""
    ordered = np.sort(b)
    above = len(b) - np.searchsorted(ordered, a, side="right")
    equal = np.searchsorted(ordered, a, side="right") - np.searchsorted(ordered, a, side="left")
    return float((above + equal / 2).mean() / len(b))
