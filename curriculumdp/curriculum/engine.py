"""The gradient engine for a run's network and device: torch on a CPU; on a GPU Triton, a layer plan, fused blocks."""

import os

import torch
from torch import nn

from curriculumdp.clipping.layer_plan import EnginePlan, LayerShape, explain, layer_shapes, plan_layers
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.clipping.planned_engine import planned_engine
from curriculumdp.clipping.unet_cover import uncovered
from curriculumdp.config.config import Config
from curriculumdp.config.sections import ComputeConfig
from curriculumdp.diffusion.networks import UNet2DModel, build_unet

# The fraction of a GPU's memory for what the engine keeps; the rest is for activations, weights and their moments. A
# fraction of the total, not of what is free, so that a resumed run gets the same layer plan.
KEPT_SHARE = 0.4
# The memory assumed by `explained` by default: an H100's.
EXPLAINED_MEMORY = 80 * 2**30


def build_engine(net: UNet2DModel, compute: ComputeConfig, draws: int) -> PerUnitGradients:
    """Return the per-unit gradients of `net` for microbatches of the config's size, on the device of `net`."""
    device = next(net.parameters()).device
    if device.type != "cuda":
        return PerUnitGradients(net, compute.microbatch, draws)
    repeat_to_the_bit()
    memory = torch.cuda.get_device_properties(device).total_memory
    plan = engine_plan(net, compute, draws, memory)
    return planned_engine(
        net,
        compute.microbatch,
        draws,
        plan,
        stored_dtype(compute),
        channels_last=compute.memory_format == "channels_last",
    )


def repeat_to_the_bit() -> None:
    """Make torch deterministic: a step replayed after a crash must give the same sum or is charged again (design D1).

    It also turns off TF32, cuDNN's default, which keeps only 10 bits of the operands of a product.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # With warn_only=True, attention's backward would keep its nondeterministic algorithm and only warn.
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.backends.cudnn.benchmark = False  # it times algorithms, and may pick others in another process
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Filling new tensors would cost a pass over each; torch does not declare a type for this switch.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def engine_plan(net: UNet2DModel, compute: ComputeConfig, draws: int, memory: int) -> EnginePlan:
    """Return the layer plan of `net` for a GPU with `memory` bytes. PUBLIC: it depends on shapes alone.

    `net` may be on the meta device; then nothing is computed. Raises PlanError if the engine does not fit.
    """
    bytes_ = stored_dtype(compute).itemsize
    return plan_layers(unet_shapes(net), compute.microbatch, draws, int(KEPT_SHARE * memory), bytes_)


def stored_dtype(compute: ComputeConfig) -> torch.dtype:
    """Return the dtype of stored per-unit gradients; norms are those of the stored values, so both are as private."""
    return torch.bfloat16 if compute.precision == "bf16" else torch.float32


def unet_shapes(net: UNet2DModel) -> list[LayerShape]:
    """Return the shapes of every trainable layer of `net`, found by passing one image through it."""
    device, config = next(net.parameters()).device, net.config
    image = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    with torch.no_grad():
        return layer_shapes(net, lambda: net(image, torch.zeros(1, device=device), class_labels=label))


def explained(config: Config, memory: int = EXPLAINED_MEMORY) -> str:
    """Return the table of `--explain`: execution and layer plan of the config's network on a GPU of `memory` bytes."""
    model, data = config.model, config.data
    with torch.device("meta"):
        net = build_unet(
            model.channels,
            data.size,
            data.channels,
            data.classes,
            null_class=False,
            blocks=model.blocks,
            attention=model.attention,
            groups=model.norm_groups,
        )
    return f"{execution(net)}\n{explain(engine_plan(net, config.compute, config.private.draws, memory))}"


def execution(net: nn.Module) -> str:
    """Return how a GPU runs `net`, in a line that names what keeps it from the fused execution. PUBLIC."""
    reason = uncovered(net)
    return (
        "execution: fused, in one layout" if reason is None else f"execution: layer by layer, since {reason}"
    )
