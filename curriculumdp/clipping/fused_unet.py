"""The fused execution of diffusers' `UNet2DModel`: its own weights, its own mathematics, one layout.

The network's forward is replaced by one autograd Function, which walks the modules with the blocks of `unet_blocks`.
`uncovered` says what the blocks do not cover; such a network runs layer by layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curriculumdp.clipping.parameters import GradientError
from curriculumdp.clipping.rules import Sink
from curriculumdp.clipping.unet_blocks import (
    Pass,
    attention,
    convolution,
    first_convolution,
    image,
    last_convolution,
    linear,
    resnet,
    rows_of,
    upsampled_convolution,
)


class Prediction(NamedTuple):
    """What the network returns, as diffusers' output: `sample` [N, C, H, W], also by index 0."""

    sample: Tensor


class FusedUNet:
    """The fused execution of `net`, for which `uncovered(net)` is None."""

    def __init__(self, net: nn.Module) -> None:
        self._net: Any = net

    def summed_apart(self) -> frozenset[str]:
        """Return the names of the parameters that reach a sink by `channels`: norms', and biases added inside them."""
        names = []
        for name, layer in self._net.named_modules():
            if isinstance(layer, nn.GroupNorm):
                names += [f"{name}.weight", f"{name}.bias"]
            elif type(layer).__name__ == "ResnetBlock2D":
                names.append(f"{name}.conv1.bias")
        return frozenset(names)

    @contextmanager
    def swapped(self, sink: Sink, samples: int) -> Iterator[None]:
        """Swap in the fused forward for the duration."""
        before = self._net.__dict__.get("forward")
        self._net.forward = partial(self._forward, sink, samples)
        try:
            yield
        finally:
            self._net.__dict__.pop("forward")
            if before is not None:
                self._net.forward = before

    def _forward(
        self,
        sink: Sink,
        samples: int,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Prediction:
        if len(sample) != samples:
            raise GradientError(
                f"the network saw {len(sample)} samples, not units × draws = {sink.units} × {samples // sink.units}"
            )
        anchor = next(self._net.parameters())
        kind = sample.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else anchor.dtype
        result: Tensor = _Network.apply(anchor, self._net, Pass(sink, dtype), sample, timestep, class_labels)
        return Prediction(result)


class _Network(torch.autograd.Function):
    """The whole network as one function, whose backward hands all per-unit gradients to the sink."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, net: Any, p: Pass, sample: Tensor, timestep: Tensor, labels: Tensor | None
    ) -> Tensor:
        ctx.run = p
        with torch.autocast(sample.device.type, enabled=False):
            return image(_run(net, p, rows_of(sample.to(p.dtype)), timestep, labels))

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, ...]:
        with torch.autocast(grad_out.device.type, enabled=False):
            ctx.run.tape.backward(rows_of(grad_out))
        return (None,) * 6


def _run(net: Any, p: Pass, x: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
    """Return the prediction, rows, of the network's input, rows; as `UNet2DModel.forward` does."""
    activated = _time_embedding(net, p, timestep.expand(len(x)), labels)
    x = first_convolution(p, net.conv_in, x)
    skips = [x]
    for block in net.down_blocks:
        for layer, attend in _pairs(block):
            x = resnet(p, layer, (x,), activated)
            x = x if attend is None else attention(p, attend, x)
            skips.append(x)
        for layer in block.downsamplers or ():
            x = convolution(p, layer.conv, x)
            skips.append(x)
    if net.mid_block is not None:
        x = resnet(p, net.mid_block.resnets[0], (x,), activated)
        for attend, layer in zip(net.mid_block.attentions, net.mid_block.resnets[1:], strict=True):
            x = x if attend is None else attention(p, attend, x)
            x = resnet(p, layer, (x,), activated)
    for block in net.up_blocks:
        for layer, attend in _pairs(block):
            x = resnet(p, layer, (x, skips.pop()), activated)
            x = x if attend is None else attention(p, attend, x)
        for layer in block.upsamplers or ():
            x = upsampled_convolution(p, layer.conv, x)
    return last_convolution(p, net.conv_norm_out, net.conv_out, x)


def _pairs(block: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each resnet of a block with the attention after it, if any."""
    yield from zip(block.resnets, getattr(block, "attentions", [None] * len(block.resnets)), strict=True)


def _time_embedding(net: Any, p: Pass, times: Tensor, labels: Tensor | None) -> Tensor:
    """Return SiLU of the embedding of noise level and class, [N, D], of the weights' dtype."""
    mlp = net.time_embedding
    weights = mlp.linear_1.weight.dtype
    first, back_first = linear(p, mlp.linear_1, net.time_proj(times).to(weights))
    second, back_second = linear(p, mlp.linear_2, F.silu(first))
    embedding = second.to(weights)
    if (labels is None) != (net.class_embedding is None):
        raise GradientError("the network and the forward disagree on whether there are class labels")
    if labels is not None:
        embedding = embedding + F.embedding(
            labels, net.class_embedding.weight, net.class_embedding.padding_idx
        )

    def pull(grad: Tensor, earlier: Any) -> tuple[()]:
        grad = torch.ops.aten.silu_backward(grad, embedding)
        if labels is not None:
            p.sink.embedding(net.class_embedding, labels, grad)
        back_first(torch.ops.aten.silu_backward(back_second(grad), first))
        return ()

    return p.tape.record(F.silu(embedding), (), pull)
