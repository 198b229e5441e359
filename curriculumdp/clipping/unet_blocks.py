"""The blocks of diffusers' U-Nets in one layout, fused, each with its way back and per-unit gradients.

Activations are rows of channels: [N, H, W, C], contiguous, of the compute dtype from first to last. A convolution's
image is a channels_last view of them. Biases and the time embedding are added by the kernel that reads the product, a
residual path by the norm that comes next, a concatenation is never written, and where two paths join the kernel that
writes one gradient adds the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curriculumdp.clipping.rules import Sink, geometry
from curriculumdp.clipping.tape import Tape
from dpkernels.attention import attend, attend_backward
from dpkernels.rows import Terms, add_rows
from dpkernels.rows_norm import norm_act, norm_act_backward

# What adds to the gradient of each source: residual paths and earlier uses.
Plus = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Pass:
    """One forward of a network and the way back. dtype: of activations and products.

    pending: sums that are not computed yet, by the id of the tensor that they will be in, which the tape keeps.
    """

    sink: Sink
    dtype: torch.dtype
    tape: Tape = field(default_factory=Tape)
    pending: dict[int, Terms] = field(default_factory=dict)

    def cast(self, weight: Tensor) -> Tensor:
        """Return a weight as products take it; a convolution's in the layout of the rows."""
        layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
        return weight.detach().to(self.dtype, memory_format=layout)

    def later(self, *terms: Tensor, bias: Tensor | None) -> Tensor:
        """Return the tensor in which Σ terms + bias will be: computed by the norm that reads it, or by `settled`."""
        if len(terms) == 1 and bias is None:
            return terms[0]
        total = torch.empty_like(terms[0])
        self.pending[id(total)] = Terms(terms, bias)
        return total

    def settled(self, x: Tensor) -> Tensor:
        """Return x, computed."""
        if (pending := self.pending.pop(id(x), None)) is not None:
            add_rows(pending.terms, pending.bias, x)
        return x


def image(rows: Tensor) -> Tensor:
    """Return [N, H, W, C] as an image [N, C, H, W]: a view."""
    return rows.permute(0, 3, 1, 2)


def rows_of(picture: Tensor) -> Tensor:
    """Return an image [N, C, H, W] as contiguous [N, H, W, C]: a view if it is channels_last."""
    return picture.permute(0, 2, 3, 1).contiguous()


def _convolve(
    p: Pass, layer: nn.Conv2d, x: Tensor, *, bias: bool
) -> tuple[Tensor, Callable[[Tensor, bool], Tensor | None]]:
    """Return the convolution of x without its bias, and grad_out, wants_input -> gradient of x.

    bias: whether the bias' gradient is taken from grad_out too.
    """
    weight = p.cast(layer.weight)
    y = F.conv2d(image(x), weight, None, layer.stride, layer.padding, layer.dilation)

    def pull(grad_out: Tensor, wants_input: bool = True) -> Tensor | None:
        p.sink.conv2d(layer, (image(x),), image(grad_out), bias=bias)
        if not wants_input:
            return None
        grad = torch.ops.aten.convolution_backward(
            *(image(grad_out), image(x), weight, None, *geometry(layer), False, (0, 0), 1),
            (True, False, False),
        )[0]
        return rows_of(grad)

    return rows_of(y), pull


def first_convolution(p: Pass, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Run the convolution on the network's input, whose gradient nobody wants."""
    y, back = _convolve(p, layer, x, bias=True)

    def pull(grad: Tensor, earlier: Sequence[Tensor | None]) -> Sequence[Tensor]:
        back(grad, False)
        return ()

    return p.tape.record(p.later(y, bias=layer.bias), (), pull)


def convolution(p: Pass, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Run a convolution with its bias."""
    y, back = _convolve(p, layer, p.settled(x), bias=True)

    def pull(grad: Tensor, earlier: Sequence[Tensor | None]) -> Sequence[Tensor]:
        grad_x = back(grad, True)
        assert grad_x is not None
        return (grad_x if earlier[0] is None else add_rows((grad_x, earlier[0])),)

    return p.tape.record(p.later(y, bias=layer.bias), (x,), pull)


def upsampled_convolution(p: Pass, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Run a 3x3 convolution with its bias on x up-sampled to twice its size, which is never written."""
    weight = p.cast(_transposed(layer.weight))
    y = F.conv_transpose2d(image(p.settled(x)), weight, None, stride=2, padding=1)

    def pull(grad: Tensor, earlier: Sequence[Tensor | None]) -> Sequence[Tensor]:
        p.sink.conv2d(layer, (image(x),), image(grad), bias=True, scale=2)
        grad_x = rows_of(F.conv2d(image(grad), weight, None, stride=2, padding=1))
        return (grad_x if earlier[0] is None else add_rows((grad_x, earlier[0])),)

    return p.tape.record(p.later(rows_of(y), bias=layer.bias), (x,), pull)


def _transposed(weight: Tensor) -> Tensor:
    """Return the weight [I, O, 4, 4] of the transposed convolution that does what [O, I, 3, 3] does on x doubled.

    Its stride is 2 and its padding 1. A pixel of x is a square of 2x2, to which up to four taps lead from each pixel of
    the output: their sums are the weight.
    """
    taps = F.pad(weight.detach().flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = taps[:, :, 1:] + taps[:, :, :-1]
    return rows[..., 1:] + rows[..., :-1]


def linear(p: Pass, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a linear layer's output and grad_out -> gradient of x; for few rows, x [N, I]."""
    x, weight = x.to(p.dtype), p.cast(layer.weight)
    bias = None if layer.bias is None else layer.bias.detach().to(p.dtype)

    def pull(grad_out: Tensor) -> Tensor:
        grad_out = grad_out.to(p.dtype)
        p.sink.linear(layer, x, grad_out)
        return grad_out.matmul(weight)

    return F.linear(x, weight, bias), pull


class Normed(NamedTuple):
    """A norm's result and its way back.

    product: of the sources' 1x1 convolution, if one runs with the norm. back: grad_out, plus, grad_product -> (gradient
    of each source, per-sample sums of theirs [N, C]).
    """

    result: Tensor
    product: Tensor | None
    back: Callable[[Tensor, Plus, Tensor | None], tuple[tuple[Tensor, ...], Tensor]]


def _norm(
    p: Pass,
    layer: nn.GroupNorm,
    sources: Sequence[Tensor],
    *,
    act: bool,
    added: nn.Parameter | None = None,
    shift: Tensor | None = None,
    through: Tensor | None = None,
) -> Normed:
    """Run a norm, which computes the first of its sources if that is pending; through: weight of a 1x1 convolution."""
    for source in sources[1:]:
        p.settled(source)
    given: dict[str, Any] = {"act": act, "added": added, "shift": shift}
    y, mean, rstd, product = norm_act(
        *(sources, layer.weight, layer.bias, layer.num_groups, layer.eps),
        **given,
        first=p.pending.pop(id(sources[0]), None),
        through=through,
    )

    def back(grad_out: Tensor, plus: Plus, grad_product: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        multiplied = None if through is None or grad_product is None else (through, grad_product)
        grads, sums = norm_act_backward(
            *(sources, grad_out, mean, rstd, layer.weight, layer.bias), **given, plus=plus, product=multiplied
        )
        p.sink.channels([layer.weight, layer.bias, *([] if added is None else [added])], sums)
        return grads, sums[:, 2]

    return Normed(y, product, back)


def resnet(p: Pass, block: Any, sources: Sequence[Tensor], activated: Tensor) -> Tensor:
    """Run a ResnetBlock2D on the concatenation of `sources`; activated: SiLU of the time embedding, [N, D]."""
    shortcut = block.conv_shortcut
    through = None if shortcut is None else p.cast(shortcut.weight)[..., 0, 0].contiguous()
    a, straight, back_norm1 = _norm(p, block.norm1, sources, act=True, through=through)
    b, back_conv1 = _convolve(p, block.conv1, a, bias=False)
    shift, back_time = linear(p, block.time_emb_proj, activated)
    c, _, back_norm2 = _norm(p, block.norm2, (b,), act=True, added=block.conv1.bias, shift=shift)
    d, back_conv2 = _convolve(p, block.conv2, c, bias=True)
    biases = [layer.bias for layer in (block.conv2, shortcut) if layer is not None]
    out = p.later(sources[0] if straight is None else straight, d, bias=sum(biases[1:], biases[0]))

    def pull(grad: Tensor, earlier: Sequence[Tensor | None]) -> Sequence[Tensor]:
        *before, before_time = earlier
        grad_c = back_conv2(grad, True)
        assert grad_c is not None
        (grad_b,), per_channel = back_norm2(grad_c, ((),), None)
        grad_time = back_time(per_channel).to(activated.dtype)
        grad_a = back_conv1(grad_b, True)
        assert grad_a is not None
        if shortcut is None:
            grads, _ = back_norm1(grad_a, _joined((grad,), before), None)
        else:
            p.sink.conv2d(shortcut, [image(source) for source in sources], image(grad), bias=True)
            grads, _ = back_norm1(grad_a, [() if part is None else (part,) for part in before], grad)
        return (*grads, grad_time if before_time is None else before_time + grad_time)

    return p.tape.record(out, (*sources, activated), pull)


def _joined(straight: Sequence[Tensor], earlier: Sequence[Tensor | None]) -> Plus:
    return [
        (path,) if before is None else (path, before) for path, before in zip(straight, earlier, strict=True)
    ]


def attention(p: Pass, block: Any, x: Tensor) -> Tensor:
    """Run a self-attention block with its norm and residual path."""
    layers = (block.to_q, block.to_k, block.to_v)
    out_layer = block.to_out[0]
    normal, _, back_norm = _norm(p, block.group_norm, (x,), act=False)
    tokens = normal.flatten(1, 2)
    weight, out_weight = p.cast(torch.cat([layer.weight for layer in layers])), p.cast(out_layer.weight)
    bias = (
        torch.cat([layer.bias for layer in layers]).detach().to(p.dtype)
        if block.to_q.bias is not None
        else None
    )
    qkv = F.linear(tokens, weight, bias)
    mixed, lse, out = attend(qkv, block.heads, x, out_weight, out_layer.bias)

    def pull(grad: Tensor, earlier: Sequence[Tensor | None]) -> Sequence[Tensor]:
        grad_tokens = grad.flatten(1, 2)
        p.sink.linear(out_layer, mixed, grad_tokens)
        grad_qkv, grad_normal = attend_backward(qkv, mixed, lse, grad_tokens, out_weight, weight)
        p.sink.projections(layers, tokens, grad_qkv)
        return back_norm(grad_normal.view_as(x), _joined((grad,), earlier), None)[0]

    return p.tape.record(out, (x,), pull)


def last_convolution(p: Pass, norm: nn.GroupNorm, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Run the norm, SiLU and convolution that end the network."""
    a, _, back_norm = _norm(p, norm, (x,), act=True)
    y, back = _convolve(p, layer, a, bias=True)

    def pull(grad: Tensor, earlier: Sequence[Tensor | None]) -> Sequence[Tensor]:
        grad_a = back(grad, True)
        assert grad_a is not None
        return back_norm(grad_a, [[before for before in earlier if before is not None]], None)[0]

    return p.tape.record(add_rows((y,), layer.bias), (x,), pull)
