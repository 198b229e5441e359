"""Saving and loading a trained network as a folder that stock diffusers can sample from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import ConsistencyModelPipeline, EDMDPMSolverMultistepScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from curriculumdp.diffusion.networks import NetworkError
from curriculumdp.diffusion.sample import build_scheduler

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


def save_pipeline(
    folder: Path,
    weights: Mapping[str, Tensor],
    net_config: Mapping[str, Any],
    sigma_data: float,
    class_names: Sequence[str] | None = None,
) -> UNet2DModel:
    """Write the network to `folder` as a `ConsistencyModelPipeline` and return it (fp32, on the CPU).

    weights: all of them, by parameter name. net_config: a `UNet2DModel`'s config. This is the stock pipeline
    that samples a class-conditional UNet2DModel; with DPM-Solver's EDM scheduler it samples what `Denoiser`
    trains. The keys that diffusers keeps for itself are left out, since they can contain a local path. class_names go
    to the network's config as `_id2label`: diffusers keeps a key with that dash, and warns about any other.
    """
    net = UNet2DModel.from_config(
        {key: value for key, value in net_config.items() if not key.startswith("_")}
    )
    net.load_state_dict({name: value.detach().float().cpu() for name, value in weights.items()})
    net.eval()
    if class_names is not None:
        net.register_to_config(_id2label={str(label): name for label, name in enumerate(class_names)})
    pipeline = ConsistencyModelPipeline(
        unet=net, scheduler=build_scheduler(EDMDPMSolverMultistepScheduler, sigma_data)
    )
    # Always one file: the release's files are an allow-list.
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="1000GB")
    return net


def load_pipeline(folder: Path) -> tuple[UNet2DModel, float]:
    """Return (network in eval mode, sigma_data) from a folder that `save_pipeline` wrote. Raises NetworkError."""
    try:
        net = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True, use_safetensors=True)
        sigma_data = float(json.loads((folder / SCHEDULER_CONFIG).read_text(encoding="utf-8"))["sigma_data"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise NetworkError(f"{folder} contains no network that this version can sample: {error}") from error
    return net.eval(), sigma_data
