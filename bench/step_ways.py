"""The steps that bench_step.py times, each written as its own library intends.

A way has `step`, which does the work once, and `gradient`, which returns the flat fp32 [P] gradient of the last step:
the mean over samples for the plain ways, the sum of clipped gradients for the private ones, so that a test can check
that they agree. No way updates weights or draws noise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.step_nets import CLIP_NORM, Microbatch
from bench.step_opacus import opacus_ghost, opacus_hooks
from curriculumdp.clipping.cuda_graph import Captured
from curriculumdp.clipping.layer_plan import layer_shapes, plan_layers
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.clipping.planned_engine import planned_engine
from curriculumdp.curriculum.engine import KEPT_SHARE, repeat_to_the_bit
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss
from dpkernels.grid import GRID


class Unavailable(RuntimeError):
    """A way cannot run here; the message says why."""


@dataclass(frozen=True)
class Way:
    """One way to do a step, on its own microbatch."""

    step: Callable[[], None]
    gradient: Callable[[], Tensor]


def prepare(way: str, device: torch.device) -> None:
    """For our ways on a GPU, select bit-reproducible algorithms, as training does.

    Irreversible, and must come before any computation, since cuBLAS's workspace setting is read once: call it in the
    way's own process.
    """
    if device.type == "cuda" and way.startswith("ours"):
        repeat_to_the_bit()


def flat_gradient(net: nn.Module) -> Tensor:
    """Return every parameter's `grad`, flat [P]."""
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def gradient_of(total: Tensor) -> Tensor:
    """Return an exact sum on the grid as an fp32 gradient."""
    return (total.double() * (CLIP_NORM / GRID)).float()


def plain(batch: Microbatch) -> Way:
    """Return forward and backward of the mean loss, as in training without privacy."""

    def step() -> None:
        batch.net.zero_grad(set_to_none=True)
        batch.losses().mean().backward()

    return Way(step, lambda: flat_gradient(batch.net))


def compiled(batch: Microbatch) -> Way:
    """Return the plain step with the network under torch.compile."""
    net = torch.compile(batch.net)

    def step() -> None:
        batch.net.zero_grad(set_to_none=True)
        batch.losses(net).mean().backward()

    return Way(step, lambda: flat_gradient(batch.net))


def of_engine(batch: Microbatch, engine: PerUnitGradients) -> Way:
    """Return our private step without noise and update: per-unit backward, clipping, exact int64 sum."""
    total = torch.zeros(engine.total, dtype=torch.int64, device=batch.device)
    present = torch.ones(batch.units, dtype=torch.bool, device=batch.device)

    def step() -> None:
        total.zero_()
        engine.backward(batch.unit_losses)
        engine.add_clipped_grads(total, CLIP_NORM, present)

    return Way(step, lambda: gradient_of(total))


def ours(batch: Microbatch) -> Way:
    """Return the step of our engine in torch alone."""
    return of_engine(batch, PerUnitGradients(batch.net, batch.units, batch.draws))


def _fused(batch: Microbatch, choose: str) -> PerUnitGradients:
    """Return our engine on Triton kernels with its layers stored, recomputed (those that can be) or as planned.

    As in training: gradients stored in bf16 under bf16, a layer plan for the engine's part of the GPU's memory, and the
    algorithms that `prepare` selected.
    """
    if not batch.images.is_cuda:
        raise Unavailable("the Triton kernels need a GPU")
    dtype = torch.bfloat16 if batch.bf16 else torch.float32
    with torch.no_grad():
        shapes = layer_shapes(batch.net, batch.losses)
    memory = int(KEPT_SHARE * torch.cuda.get_device_properties(batch.device).total_memory)
    plan = plan_layers(shapes, batch.units, batch.draws, memory, dtype.itemsize)
    if choose == "recompute":
        can = [p.layer.kind in ("Conv2d", "Linear") for p in plan.layers]
        layers = [
            replace(p, way="recompute" if c else "store") for p, c in zip(plan.layers, can, strict=True)
        ]
        plan = replace(plan, layers=tuple(layers))
    chosen = None if choose == "store" else plan
    return planned_engine(batch.net, batch.units, batch.draws, chosen, dtype, channels_last=batch.bf16)


def captured(batch: Microbatch) -> Way:
    """Return the planned engine's step as one CUDA graph, which is what training runs on a GPU."""
    engine = _fused(batch, "planned")
    total = torch.zeros(engine.total, dtype=torch.int64, device=batch.device)

    def body(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = engine.backward(batch.unit_losses)
        result = engine.add_clipped_grads(total, CLIP_NORM, inputs["present"])
        return {"losses": losses, "norms": result.norms}

    present = {"present": torch.ones(batch.units, dtype=torch.bool, device=batch.device)}
    graph = Captured(body, present)

    def step() -> None:
        total.zero_()
        graph(present)

    return Way(step, lambda: gradient_of(total))


@contextmanager
def attention_by_products(batch: Microbatch) -> Iterator[None]:
    """Compute attention by matrix products within this context: vmap cannot batch the fused kernel and would loop.

    Under autocast the operands are cast before the products, not inside: torch.func decomposes the products, autocast
    would cast their fp32 parts again, and their backward would get mixed dtypes.
    """
    attend = F.scaled_dot_product_attention

    def cast_before(*operands: Tensor, **options: object) -> Tensor:
        with torch.autocast(batch.device.type, enabled=False):
            return attend(*(t.bfloat16() for t in operands), **options)

    with sdpa_kernel(SDPBackend.MATH):
        if not batch.bf16:
            yield
            return
        with patch.object(F, "scaled_dot_product_attention", cast_before):
            yield


def functorch(batch: Microbatch) -> Way:
    """Return a torch.func step: vmap over units of the gradient of a unit's mean loss, then clip and sum."""
    weights = {name: p.detach() for name, p in batch.net.named_parameters()}
    samples = [
        t.unflatten(0, (batch.units, batch.draws))
        for t in (batch.images, batch.labels, batch.sigma, batch.noise)
    ]

    def unit_loss(weights: dict[str, Tensor], *unit: Tensor) -> Tensor:
        def net(*args: object, **options: object) -> object:
            return functional_call(batch.net, weights, args, options)

        with batch.precision(), attention_by_products(batch):
            return edm_loss(Denoiser(net), *unit).mean()

    by_unit = vmap(grad(unit_loss), in_dims=(None, 0, 0, 0, 0))

    def step() -> None:
        grads = by_unit(weights, *samples)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        factors = (CLIP_NORM / norms).clamp(max=1.0)
        for name, p in batch.net.named_parameters():
            p.grad = torch.einsum("b,b...->...", factors, grads.pop(name))

    return Way(step, lambda: flat_gradient(batch.net))


WAYS: dict[str, Callable[[Microbatch], Way]] = {
    "plain": plain,
    "compiled": compiled,
    "ours": ours,
    "ours-store": lambda batch: of_engine(batch, _fused(batch, "store")),
    "ours-recompute": lambda batch: of_engine(batch, _fused(batch, "recompute")),
    "ours-planned": lambda batch: of_engine(batch, _fused(batch, "planned")),
    "ours-graph": captured,
    "opacus-hooks": lambda batch: Way(*opacus_hooks(batch)),
    "opacus-functorch": lambda batch: Way(*opacus_hooks(batch, "functorch")),
    "opacus-ew": lambda batch: Way(*opacus_hooks(batch, "ew")),
    "opacus-fast": lambda batch: Way(*opacus_ghost(batch, norms_of_factors=False)),
    "opacus-ghost": lambda batch: Way(*opacus_ghost(batch)),
    "functorch": functorch,
}
NOTES = {
    "opacus-hooks": "Opacus with .contiguous() before unfold2d; per (unit, draw), then averaged over draws",
    "opacus-functorch": "Opacus, functorch for every layer; per (unit, draw), then averaged over draws",
    "opacus-ew": "Opacus, expanded weights; per (unit, draw), then averaged over draws",
    "opacus-fast": "Opacus with .contiguous() before unfold2d; fast gradient clipping; "
    "at K > 1 it clips each draw separately, a different mechanism",
    "opacus-ghost": "Opacus with .contiguous() before unfold2d; ghost norms for Linear and Embedding alone; "
    "at K > 1 it clips each draw separately, a different mechanism",
}
