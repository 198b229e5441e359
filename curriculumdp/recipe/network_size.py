"""Parameters and operations of the U-Net, by arithmetic alone: `plan` and `new` answer without torch. PUBLIC.

The layers are those of diffusers' `UNet2DModel` as `curriculumdp.diffusion.networks.build_unet` asks for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A backward pass computes the gradients of inputs and weights: each costs what the forward pass does.
PASSES_PER_STEP = 3


@dataclass(frozen=True)
class Layer:
    """parameters: their number. products: multiply-adds of the forward pass, per image."""

    parameters: int
    products: int


@dataclass(frozen=True)
class NetworkSize:
    """parameters: P, their number. flop_per_image: of a training step, forward and backward, per image and draw."""

    parameters: int
    flop_per_image: int


def network_size(
    channels: Sequence[int],
    size: int,
    image_channels: int,
    embedded_classes: int,
    *,
    blocks: int,
    attention: Sequence[int] = (),
) -> NetworkSize:
    """Return the size of the U-Net for images of `size` pixels; `embedded_classes` includes a null class."""
    layers = list(_layers(channels, size, image_channels, embedded_classes, blocks, attention))
    products = sum(layer.products for layer in layers)
    return NetworkSize(sum(layer.parameters for layer in layers), 2 * PASSES_PER_STEP * products)


def _layers(
    channels: Sequence[int],
    size: int,
    image_channels: int,
    embedded_classes: int,
    blocks: int,
    attention: Sequence[int],
) -> Iterator[Layer]:
    first, last = channels[0], channels[-1]
    embedded = 4 * first  # width of the time and class embeddings
    yield _convolution(image_channels, first, size)
    yield _linear(first, embedded)
    yield _linear(embedded, embedded)
    yield Layer(embedded_classes * embedded, 0)
    entering = [first, *channels[:-1]]  # channels that enter each level on the way down
    for level, width in enumerate(channels):
        pixels = size >> level
        for block in range(blocks):
            yield from _residual(entering[level] if block == 0 else width, width, embedded, pixels)
            if pixels in attention:
                yield from _attention(width, pixels)
        if level < len(channels) - 1:
            yield _convolution(width, width, pixels // 2)
    lowest = size >> (len(channels) - 1)
    yield from _residual(last, last, embedded, lowest)
    yield from _attention(last, lowest)
    yield from _residual(last, last, embedded, lowest)
    below = last
    for level, width in reversed(list(enumerate(channels))):
        pixels = size >> level
        for block in range(blocks + 1):
            skipped = entering[level] if block == blocks else width
            yield from _residual((below if block == 0 else width) + skipped, width, embedded, pixels)
            if pixels in attention:
                yield from _attention(width, pixels)
        if level:
            yield _convolution(width, width, 2 * pixels)
        below = width
    yield _norm(first)
    yield _convolution(first, image_channels, size)


def _residual(entering: int, leaving: int, embedded: int, pixels: int) -> Iterator[Layer]:
    yield _norm(entering)
    yield _convolution(entering, leaving, pixels)
    yield _linear(embedded, leaving)
    yield _norm(leaving)
    yield _convolution(leaving, leaving, pixels)
    if entering != leaving:
        yield _linear(entering, leaving, pixels**2)


def _attention(width: int, pixels: int) -> Iterator[Layer]:
    tokens = pixels**2
    yield _norm(width)
    for _ in ("query", "key", "value", "output"):
        yield _linear(width, width, tokens)
    yield Layer(0, 2 * tokens**2 * width)  # scores and their weighted sum


def _convolution(entering: int, leaving: int, pixels: int) -> Layer:
    return Layer(9 * entering * leaving + leaving, 9 * entering * leaving * pixels**2)


def _linear(entering: int, leaving: int, positions: int = 1) -> Layer:
    return Layer(entering * leaving + leaving, entering * leaving * positions)


def _norm(width: int) -> Layer:
    return Layer(2 * width, 0)
