"""Choose, layer by layer, how per-unit gradients are computed on a GPU: stored, recomputed or from factors.

    store      the gradient is written once and read once by the clipped sum: 2·s·W bytes per unit
    recompute  only the norm is computed; the product is repeated for the sum, 2·K·T·W flop per unit, and the
               layer's input and output gradient, s·K·T·(I+O) bytes per unit, are kept until then
    factors    one position per draw: the norm from the K² products of the factors, the sum by recomputing

W: weights and bias of the layer; I and O: its columns and rows; T: positions; K: draws; s: bytes per element. Every
layer starts with its fastest way. While the kept bytes exceed the given memory, the layer that frees the most bytes
per extra second switches to another way. Only shapes matter; nothing here depends on data.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from curriculumdp.clipping.rules import ruled_layers
from curriculumdp.errors import UserError

Way = Literal["store", "recompute", "factors"]

# Measured on an NVIDIA H100 80GB HBM3, 2026-11-27, triton 3.6: recomputed sums of 3x3 convolutions reach 216 TFLOP/s
# (256 → 256 channels, 16 px, 16 units, K = 8) and 231 (64 → 64, 28 px, 64 units, K = 32); copies 3.01 TB/s, reads and
# writes counted.
FLOPS = 216e12
BYTES_PER_SECOND = 3.01e12
MIB = 2**20


class PlanError(UserError):
    """No choice of ways fits the given memory."""


@dataclass(frozen=True)
class LayerShape:
    """One trainable layer: rows O, columns I (times taps), positions T; inputs: elements of one sample's input."""

    name: str
    kind: str
    rows: int
    columns: int
    positions: int
    inputs: int
    weights: int


@dataclass(frozen=True)
class LayerPlan:
    """A layer's way, the bytes it keeps until the sum and the seconds it adds to a plain backward."""

    layer: LayerShape
    way: Way
    kept: int
    seconds: float


@dataclass(frozen=True)
class EnginePlan:
    """The layer plan of a microbatch: the way of every layer."""

    layers: tuple[LayerPlan, ...]
    units: int
    draws: int
    memory: int

    @property
    def kept(self) -> int:
        """Return the bytes that all layers together keep until the sum."""
        return sum(plan.kept for plan in self.layers)

    def way(self, name: str) -> Way:
        """Return the way of the layer `name`."""
        return next(plan.way for plan in self.layers if plan.layer.name == name)


def layer_shapes(net: nn.Module, forward: Callable[[], object]) -> list[LayerShape]:
    """Return the shape of every trainable layer of `net`, recorded in one call of `forward` (one sample is enough)."""
    shapes: dict[str, LayerShape] = {}
    with ExitStack() as hooks:
        for name, layer, _ in ruled_layers(net):

            def record(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor, name: str = name) -> None:
                shapes[name] = _shape(name, layer, inputs[0], output)

            hooks.enter_context(layer.register_forward_hook(record))
        forward()
    return list(shapes.values())


def _shape(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> LayerShape:
    weights = sum(p.numel() for p in layer.parameters(recurse=False) if p.requires_grad)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows, columns = len(weight), weight[0].numel()
    # An embedding's rows are looked up, not multiplied: one position per lookup.
    outputs = columns if isinstance(layer, nn.Embedding) else rows
    return LayerShape(
        name, type(layer).__name__, rows, columns, y[0].numel() // outputs, x[0].numel(), weights
    )


def plan_layers(
    layers: Sequence[LayerShape], units: int, draws: int, memory: int, element_bytes: int = 4
) -> EnginePlan:
    """Return a layer plan for microbatches of `units` units with `draws` draws that keeps at most `memory` bytes.

    element_bytes: bytes per element of the stored gradients (4 for fp32, 2 for bf16); inputs and output gradients
    count 2 bytes, as in bf16. Raises PlanError if no choice fits.
    """
    choices = [_ways(layer, units, draws, element_bytes) for layer in layers]
    chosen = [min(ways, key=lambda plan: plan.seconds) for ways in choices]
    while (kept := sum(plan.kept for plan in chosen)) > memory:
        gains = [
            ((now.kept - other.kept) / max(other.seconds - now.seconds, 1e-12), index, other)
            for index, (now, ways) in enumerate(zip(chosen, choices, strict=True))
            for other in ways
            if other.kept < now.kept
        ]
        if not gains:
            raise PlanError(
                f"per-unit gradients of a microbatch of {units} units need at least {kept / MIB:.0f} MiB, but only "
                f"{memory / MIB:.0f} MiB are available: lower compute.microbatch"
            )
        _, index, other = max(gains, key=lambda gain: gain[0])
        chosen[index] = other
    return EnginePlan(tuple(chosen), units, draws, memory)


def _ways(layer: LayerShape, units: int, draws: int, element_bytes: int) -> list[LayerPlan]:
    """Return every way that the layer's type allows."""
    gradients = units * layer.weights * element_bytes
    ways = [LayerPlan(layer, "store", gradients, 2 * gradients / BYTES_PER_SECOND)]
    if layer.kind not in ("Conv2d", "Linear"):
        return ways
    operands = 2 * units * draws * (layer.inputs + layer.rows * layer.positions)
    product = 2 * units * draws * layer.positions * layer.rows * layer.columns
    again = product / FLOPS + operands / BYTES_PER_SECOND
    ways.append(LayerPlan(layer, "recompute", operands, again))
    if layer.kind == "Linear" and layer.positions == 1:
        # No first product: the norm comes from the factors at almost no cost.
        gram = 2 * units * draws**2 * (layer.rows + layer.columns) / FLOPS
        ways.append(LayerPlan(layer, "factors", operands, gram + operands / BYTES_PER_SECOND))
    return ways


def explain(plan: EnginePlan) -> str:
    """Return the layer plan as the table that `--explain` prints. PUBLIC: it depends on shapes alone."""
    columns = "{:<44} {:<10} {:>15} {:>7} {:<10} {:>9} {:>9}"
    lines = [columns.format("layer", "type", "rows x columns", "K·T", "way", "kept MiB", "extra µs")]
    for chosen in plan.layers:
        layer = chosen.layer
        size, reduction = f"{layer.rows} x {layer.columns}", plan.draws * layer.positions
        costs = f"{chosen.kept / MIB:.1f}", f"{chosen.seconds * 1e6:.1f}"
        lines.append(columns.format(layer.name, layer.kind, size, reduction, chosen.way, *costs))
    count = Counter(chosen.way for chosen in plan.layers)
    lines.append(
        f"{plan.units} units, {plan.draws} draws: {plan.kept / MIB:.0f} of {plan.memory / MIB:.0f} MiB kept; "
        + ", ".join(f"{way} {number}" for way, number in sorted(count.items()))
        + " (extra µs: operations and bytes at speeds measured on an H100; these layers were not measured)"
    )
    return "\n".join(lines)
