"""The random-Fourier embedding of images, equal to the bit on any machine (Rahimi and Recht 2007; DP-MERF, 2021).

z(x) = [cos Wx, sin Wx]/√F for x in [0, 1]^d and W of F rows with entries N(0, 1)/bandwidth: ‖z(x)‖ = 1. W is PUBLIC: it
depends on a public seed and the images' shape alone. Its entries are rounded to multiples of 2⁻³² turns per grey level,
so that the products with 8-bit pixels and their sums are integers below 2⁵³: exact in float64 in any order. Cosines
come from a table of 2¹⁶ angles. So an image's embedding depends neither on the images beside it nor on the shape of the
batch: removing a unit changes no other unit's vector.
"""

from dataclasses import dataclass
from functools import cache
from math import pi, sqrt

import torch
from torch import Tensor

from curriculumdp.clipping.clip import add_clipped_rows
from curriculumdp.curriculum.warmup import public_seed
from curriculumdp.data.images import ImageSet

CLIP_NORM = 1.0
UNITS_AT_ONCE = 64
IMAGES_AT_ONCE = 256
TURN = 2.0**32  # steps per turn: the grid of W
ANGLES = 2**16  # of the table of cosines
FINE = 2.0**30  # the table's values are multiples of 1/FINE: sums of 2²² of them are exact


@dataclass(frozen=True)
class Embedding:
    """The public parameters of an embedding; images have `pixels` values each. It has 2·features values per class."""

    seed: int
    features: int
    bandwidth: float
    pixels: int
    classes: int

    @property
    def width(self) -> int:
        return 2 * self.features * self.classes

    def projection(self) -> Tensor:
        """Return W as whole steps of 2⁻³² turns per grey level, float64 [pixels, F]. PUBLIC.

        Its normals are `torch.randn` in float64 on the CPU, from a generator whose seed is that of the certificate's
        `embedding.seed` through `public_seed`: SHA-256("SEED:frequency:0"), its first 8 bytes as a little-endian
        integer, halved.
        """
        generator = torch.Generator().manual_seed(public_seed(self.seed, "frequency"))
        normals = torch.randn(self.pixels, self.features, generator=generator, dtype=torch.float64)
        return (normals * (TURN / (2 * pi * 255 * self.bandwidth))).round_()

    def radians(self) -> Tensor:
        """Return W as radians for pixels in [0, 1], float64 [pixels, F]. PUBLIC."""
        return self.projection() * (2 * pi * 255 / TURN)


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of ANGLES angles around the circle, float64 multiples of 1/FINE."""
    angles = torch.arange(ANGLES, dtype=torch.float64) * (2 * pi / ANGLES)
    return (angles.cos() * FINE).round_() / FINE, (angles.sin() * FINE).round_() / FINE


def waves(pixels: Tensor, projection: Tensor) -> Tensor:
    """Return [cos Wx, sin Wx], float64 [M, 2F], of grey levels float64 [M, pixels], whole, 0 to 255. PRIVATE."""
    angles = ((pixels @ projection).to(torch.int64) >> 16).bitwise_and_(ANGLES - 1).int().view(-1)
    parts = [table.index_select(0, angles).view(len(pixels), -1) for table in _tables()]
    return torch.cat(parts, dim=1)


def unit_vectors(embedding: Embedding, projection: Tensor, images: ImageSet, units: Tensor) -> Tensor:
    """Return the mean over each unit's images of z(x) ⊗ one-hot(label): fp32 [len(units), classes·2F]. PRIVATE.

    Its norm is at most 1, that of z, for any number of images and labels, because it is a mean (Jensen). A unit without
    images contributes zeros.
    """
    owners, rows = images.rows_of(units)
    labels = torch.from_numpy(images.labels[rows])
    blocks, places = torch.unique(torch.stack([owners, labels], dim=1), dim=0, return_inverse=True)
    owner, label = blocks.T
    sums = torch.zeros(len(blocks), 2 * embedding.features, dtype=torch.float64)
    for start in range(0, len(rows), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        pixels = torch.from_numpy(images.images[rows[part]]).flatten(1).to(torch.float64)
        sums.index_add_(0, places[part], waves(pixels, projection))
    counts = torch.from_numpy(images.counts[units.numpy()]).to(torch.float64)
    sums *= 1 / (counts[owner, None] * sqrt(embedding.features))
    vectors = torch.zeros(len(units), embedding.classes, 2 * embedding.features)
    vectors[owner, label] = sums.float()
    return vectors.flatten(1)


def embedded_sum(embedding: Embedding, images: ImageSet, units: Tensor) -> Tensor:
    """Return the sum of the units' clipped vectors on the grid, before noise: int64 [classes·2F]. PRIVATE.

    Every unit keeps its slot in its chunk, whether or not it owns images.
    """
    total = torch.zeros(embedding.width, dtype=torch.int64)
    projection = embedding.projection() if len(units) else torch.zeros(0)
    for part in units.split(UNITS_AT_ONCE):
        present = torch.from_numpy(images.counts[part.numpy()] > 0)
        vectors = unit_vectors(embedding, projection, images, part)
        add_clipped_rows(vectors, total, CLIP_NORM, present)
    return total
