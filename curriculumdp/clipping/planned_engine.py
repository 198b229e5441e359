"""The engine of a GPU: kernels, a layer plan, and the fused execution where it covers the network."""

import torch
from torch import nn

from curriculumdp.clipping.fused_unet import FusedUNet
from curriculumdp.clipping.kernel_rules import kernel_rules
from curriculumdp.clipping.layer_plan import EnginePlan
from curriculumdp.clipping.layerwise import LayerByLayer
from curriculumdp.clipping.per_unit import Execution, PerUnitGradients
from curriculumdp.clipping.planned_store import PlannedStore
from curriculumdp.clipping.unet_cover import uncovered


def planned_engine(
    net: nn.Module,
    units: int,
    draws: int,
    plan: EnginePlan | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
) -> PerUnitGradients:
    """Return the per-unit gradients of `net` on Triton kernels. PRIVATE.

    Without a layer plan every layer is stored, in `dtype`. A layer that the kernels do not cover (grouped convolution,
    partly frozen layer) is stored by its ordinary rule. channels_last: where the network runs layer by layer,
    convolutions return that memory format whatever their input has. Raises GradientError if two layers share a
    parameter.
    """
    covered = kernel_rules(net, channels_last=channels_last)
    planned = {} if plan is None else {p.layer.name: p.way for p in plan.layers}
    ways = {name: planned.get(name, "store") for name in covered}
    if uncovered(net) is None:
        fused = FusedUNet(net)
        store = PlannedStore(net, units, ways, dtype, fused.summed_apart())
        return PerUnitGradients(net, units, draws, store, fused)
    execution: Execution = LayerByLayer(net, {id(layer): rule for layer, rule in covered.values()})
    return PerUnitGradients(net, units, draws, PlannedStore(net, units, ways, dtype), execution)
