"""Images by their content: which are the same picture. As private as the images."""

from collections import defaultdict
from hashlib import blake2b

import numpy as np

from curriculumdp.data.images import ImageSet


def image_digests(images: np.ndarray) -> list[bytes]:
    """Return a digest of each image's pixels, uint8 [N, C, H, W]."""
    return [blake2b(image.tobytes(), digest_size=16).digest() for image in np.ascontiguousarray(images)]


def shared_between_units(images: ImageSet) -> int:
    """Return how many images are the same picture as an image of another unit. PRIVATE."""
    digests = image_digests(images.images)
    owners: defaultdict[bytes, set[int]] = defaultdict(set)
    for digest, unit in zip(digests, images.units.tolist(), strict=True):
        owners[digest].add(unit)
    return sum(len(owners[digest]) > 1 for digest in digests)
