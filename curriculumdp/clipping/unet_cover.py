"""Whether the fused execution covers a U-Net: the first block, layer or option that it does not, by name."""

from collections.abc import Iterator
from typing import Any

from torch import nn

BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
# Wider ones would not fit in a program's shared memory.
WIDEST_HEAD = 512


def uncovered(net: nn.Module) -> str | None:
    """Return the first module or option of `net` that the fused execution does not cover, None if it covers all."""
    return next(_reasons(net), None)


def _reasons(net: Any) -> Iterator[str]:
    if type(net).__name__ != "UNet2DModel":
        yield f"the network is a {type(net).__name__}"
        return
    config = net.config
    for option, covered in (
        ("time_embedding_type", ("positional",)),
        ("class_embed_type", (None,)),
        ("center_input_sample", (False,)),
        ("act_fn", ("silu", "swish")),
        ("resnet_time_scale_shift", ("default",)),
        ("mid_block_scale_factor", (1,)),
    ):
        if config[option] not in covered:
            yield f"{option} is {config[option]}"
    for kind in ("down", "up"):
        for number, block in enumerate(getattr(net, f"{kind}_blocks")):
            if type(block).__name__ not in BLOCKS:
                yield f"{kind}_blocks.{number} is a {type(block).__name__}"
    for name, module in net.named_modules():
        yield from (f"{name} ({type(module).__name__}): {why}" for why in _of_module(module))


def _of_module(module: Any) -> Iterator[str]:
    """Yield what is not covered in one module, its children left out."""
    if not all(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        yield "a frozen parameter"
    if getattr(module, "gradient_checkpointing", False):
        yield "gradient checkpointing"
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
        yield "dropout"
    kind = type(module).__name__
    if kind == "ResnetBlock2D":
        plain = module.upsample is None and module.downsample is None and module.time_emb_proj is not None
        if not plain or module.skip_time_act or module.output_scale_factor != 1:
            yield "it changes the size, its time embedding or the scale of its output"
    elif kind == "Attention":
        if not _is_plain_attention(module):
            yield "it is not plain self-attention with a norm and a residual path"
        elif module.to_q.out_features // module.heads > WIDEST_HEAD:
            yield f"its heads have more than {WIDEST_HEAD} channels"
    elif kind in ("Upsample2D", "Downsample2D"):
        if not module.use_conv or module.norm is not None or getattr(module, "use_conv_transpose", False):
            yield "it is more or less than a convolution"
        elif kind == "Upsample2D" and not _is_of_one_pixel(module.conv):
            yield "its convolution is not 3x3 with a border of one pixel"
        elif kind == "Downsample2D" and module.padding == 0:
            yield "uneven padding"


def _is_of_one_pixel(layer: Any) -> bool:
    sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return sizes == ((3, 3), (1, 1), (1, 1), (1, 1))


def _is_plain_attention(module: Any) -> bool:
    absent = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    return (
        all(getattr(module, name) is None for name in absent)
        and type(module.processor).__name__ in ("AttnProcessor2_0", "AttnProcessor")
        and module.group_norm is not None
        and module.residual_connection
        and module.rescale_output_factor == 1
        and module.to_q.weight.shape == module.to_k.weight.shape == module.to_v.weight.shape
        and module.to_out[0].bias is not None
    )
