"""The engine that a run's network and device get: torch's on a CPU, the planned Triton one on a GPU."""

import os

import torch

from curriculumdp.clipping.layer_plan import EnginePlan, LayerShape, explain, layer_shapes, plan_layers
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.clipping.triton_gradients import FusedGradients
from curriculumdp.config.config import Config
from curriculumdp.config.sections import ComputeConfig
from curriculumdp.diffusion.networks import UNet2DModel, build_unet

# Of a GPU's memory, for what the engine keeps; the rest is for activations, weights and their moments. A share of
# all of it, not of what is free, so that a resumed run plans the same.
KEPT_SHARE = 0.4
# The GPU that is spoken of where none is at hand: an H100.
EXPLAINED_MEMORY = 80 * 2**30


def build_engine(net: UNet2DModel, compute: ComputeConfig, draws: int) -> PerUnitGradients:
    """Per-unit gradients of `net` for microbatches of the config's size, on the device that `net` is on."""
    device = next(net.parameters()).device
    if device.type != "cuda":
        return PerUnitGradients(net, compute.microbatch, draws)
    repeat_to_the_bit()
    memory = torch.cuda.get_device_properties(device).total_memory
    plan = engine_plan(net, compute, draws, memory)
    return FusedGradients(
        net,
        compute.microbatch,
        draws,
        plan,
        stored_dtype(compute),
        channels_last=compute.memory_format == "channels_last",
    )


def repeat_to_the_bit() -> None:
    """A step that is replayed after a crash must give the same sum, or it is charged again (design D1).

    fp32 is fp32 from here on: TF32, cuDNN's default, keeps 10 bits of a product's operands.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Under warn_only=True attention's backward keeps the algorithm that does not repeat, and merely says so.
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.backends.cudnn.benchmark = False  # it times algorithms, and may pick another one in another process
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Filling new tensors would cost a pass over each; torch gives the switch no type.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def engine_plan(net: UNet2DModel, compute: ComputeConfig, draws: int, memory: int) -> EnginePlan:
    """How each layer of `net` is done on a GPU with `memory` bytes. Public: from shapes alone.

    `net` may be on the meta device: nothing is computed then. Raises PlanError where it does not fit.
    """
    bytes_ = stored_dtype(compute).itemsize
    return plan_layers(unet_shapes(net), compute.microbatch, draws, int(KEPT_SHARE * memory), bytes_)


def stored_dtype(compute: ComputeConfig) -> torch.dtype:
    """What per-unit gradients are stored in; norms are those of the stored values, so either is as private."""
    return torch.bfloat16 if compute.precision == "bf16" else torch.float32


def unet_shapes(net: UNet2DModel) -> list[LayerShape]:
    """The shapes of every trainable layer of `net`, from one image that passes through it."""
    device, config = next(net.parameters()).device, net.config
    image = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    with torch.no_grad():
        return layer_shapes(net, lambda: net(image, torch.zeros(1, device=device), class_labels=label))


def explained(config: Config, memory: int = EXPLAINED_MEMORY) -> str:
    """How a GPU with `memory` bytes would do each layer of the config's network: the table of `--explain`."""
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
    return explain(engine_plan(net, config.compute, config.private.draws, memory))
