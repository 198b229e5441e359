"""The U-Net: diffusers' `UNet2DModel`, restricted to layers that have a rule for per-unit gradients."""

import os
from collections.abc import Sequence
from math import gcd
from pathlib import Path

from diffusers import UNet2DModel
from torch import nn

from curriculumdp.errors import UserError

__all__ = ["NetworkError", "UNet2DModel", "build_unet", "check_trainable", "load_public_weights"]

# What the first bytes of a certificate contain (`release.certificate.FORMAT`).
CERTIFICATE_MARK, MARKED = b"curriculumdp privacy certificate", 200
MIXES_EXAMPLES = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class NetworkError(UserError):
    """A network that cannot be built, loaded or trained under privacy."""


def build_unet(
    channels: Sequence[int],
    size: int,
    image_channels: int,
    classes: int,
    null_class: bool,
    *,
    blocks: int,
    attention: Sequence[int] = (),
    groups: int | None = None,
) -> UNet2DModel:
    """Build an untrained class-conditional U-Net for images [N, image_channels, size, size].

    Its layers are Conv2d, Linear, GroupNorm and Embedding. `attention` lists the resolutions (pixels) of the
    levels with self-attention; the middle block always has it. `null_class` adds one label, numbered `classes`.
    `groups` is the number of groups of every GroupNorm, by default the narrowest level's width / 4 (EDM's rule).
    Initial weights come from torch's global generator, so seed it first. Raises NetworkError, one line.
    """
    groups = groups or max(1, min(channels) // 4)
    _check_shape(channels, size, attention, groups)
    attends = [size >> level in attention for level in range(len(channels))]
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        # Fourier features would be NaN at EDM's negative c_noise.
        time_embedding_type="positional",
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        block_out_channels=tuple(channels),
        layers_per_block=blocks,
        # The widest head that divides every level: a single head where it equals the width.
        attention_head_dim=gcd(*channels),
        norm_num_groups=groups,
        add_attention=True,
        num_class_embeds=classes + int(null_class),
    )


def _check_shape(channels: Sequence[int], size: int, attention: Sequence[int], groups: int) -> None:
    halvings = len(channels) - 1
    if size % 2**halvings:
        raise NetworkError(
            f"{len(channels)} levels halve the image {halvings} times, so its size {size} must be a multiple of "
            f"{2**halvings}: remove a level or change the size"
        )
    sizes = [size >> level for level in range(len(channels))]
    for resolution in attention:
        if resolution not in sizes:
            raise NetworkError(
                f"no level has attention's resolution of {resolution} pixels; choose from {sizes}"
            )
    for width in channels:
        # With one channel per group, the norm would remove what the time and class embeddings add.
        if width % groups or width == groups:
            raise NetworkError(
                f"{groups} groups do not fit a level of {width} channels: they must divide every level and "
                "have at least 2 channels each; change the channels or the groups"
            )


def check_trainable(net: nn.Module) -> None:
    """Raise NetworkError, naming the layer, if a layer of `net` mixes examples or uses unkeyed randomness.

    Batch statistics make one example's gradient depend on another's pixels; dropout's mask comes from a
    generator whose state a resumed run cannot restore.
    """
    for name, layer in net.named_modules():
        if isinstance(layer, MIXES_EXAMPLES):
            raise NetworkError(f"{name} is a {type(layer).__name__}, which mixes examples: use GroupNorm")
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise NetworkError(
                f"{name} has dropout {layer.p:g}: set it to 0, since a dropout mask cannot be replayed"
            )


def _refuse_release(folder: Path, source: Path) -> None:
    """Raise NetworkError if the weights in `source`, or what its links lead to, lie in a release."""
    files = [source, *source.glob("*.safetensors"), *source.glob("*.json")]
    places = {
        folder.resolve(),
        *(place for file in files for place in (file.resolve(), *file.resolve().parents[:2])),
    }
    for place in sorted(places):
        certificate = place / "privacy.json"
        if os.path.lexists(certificate) and (
            not certificate.is_file() or CERTIFICATE_MARK in certificate.open("rb").read(MARKED)
        ):
            raise NetworkError(
                f"init_from: {place} is a release with a privacy certificate, so its weights are not public: what they "
                "cost is not in this run's ε; start from a public model"
            )


def load_public_weights(net: UNet2DModel, folder: Path) -> None:
    """Overwrite `net`'s weights with those of a PUBLIC diffusers folder (a pipeline's, or its `unet`).

    A class embedding for another number of classes is left unchanged. Opens no network connection and reads
    only safetensors. Raises NetworkError that names the first parameter that does not fit, and for a release, whose
    weights were trained on private images: a unit in both sets would lose more than this run's ε.
    """
    source = folder / "unet" if (folder / "unet").is_dir() else folder
    _refuse_release(folder, source)
    try:
        public = UNet2DModel.from_pretrained(source, local_files_only=True, use_safetensors=True).state_dict()
    except (OSError, ValueError, RuntimeError) as error:
        raise NetworkError(f"{folder} contains no diffusers UNet2DModel in safetensors: {error}") from error
    own = net.state_dict()
    for name in dict.fromkeys([*own, *public]):
        if name.startswith("class_embedding") and name in own:
            continue
        shapes = [tuple(weights[name].shape) if name in weights else "absent" for weights in (own, public)]
        if shapes[0] != shapes[1]:
            raise NetworkError(
                f"{folder}: {name} is {shapes[1]} there and {shapes[0]} here: change `model` to match"
            )
    fitting = {name: value for name, value in public.items() if own[name].shape == value.shape}
    net.load_state_dict(fitting, strict=False)
