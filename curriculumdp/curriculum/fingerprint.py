"""The fingerprint: what is known to change the bits of a step's sum, a hint for when to take new keys (design D1).

It only decides whether steps that the ledger holds are replayed. The sum's MAC is the guard: a replayed sum that
differs is discarded whatever the fingerprint says, and steps that the ledger does not hold get new keys anyway.
"""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curriculumdp.config.changes import fresh_options
from curriculumdp.config.config import Config
from curriculumdp.world import World

# The version of all code that turns rows and keys into a noisy sum; changing it gives a resumed run new keys.
MECHANISM = 4

# Variables that make libraries choose instruction sets, algorithms or precision. Those with which launchers set the
# number of threads are not here: the config sets torch's.
ENVIRONMENT = (
    *(
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
        "ONEDNN_CPU_ISA_HINTS",
        "DNNL_CPU_ISA_HINTS",
    ),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TORCH_MKLDNN_MATMUL_MIN_DIM"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "OPENBLAS_CORETYPE", "BLIS_ARCH_TYPE"),
    *("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "GLIBC_TUNABLES", "LD_PRELOAD"),
)
# Those that count on a GPU alone.
GPU_ENVIRONMENT = (
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT"),
    *("DISABLE_ADDMM_CUDA_LT", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"),
    *("TORCH_CUDNN_V8_API_DISABLED", "TORCH_CUDNN_SDPA_ENABLED", "PYTORCH_TUNABLEOP_ENABLED"),
    *("TRITON_F32_DEFAULT", "TRITON_INTERPRET"),
)
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CPU_INFO = Path("/proc/cpuinfo")


def fingerprint(config: Config, world: World) -> dict[str, Any]:
    """Return what the sums of this run depend on besides data and keys: plain values, the same on all ranks.

    It holds the options marked *fresh* and facts about the machine. Ranks on different machines are listed by digest,
    without a count, so a run may be resumed on any number of equal machines.
    """
    mine = fresh_options(config) | {"compute.device": world.device.type} | _machine(world.device)
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
    others = sorted({other.hex() for other in world.gather(digest)} - {digest.hex()})
    return mine | ({"unequal ranks": others} if others else {})


def _machine(device: torch.device) -> dict[str, Any]:
    """Return the libraries, the processor, and the settings that tell them how to compute."""
    names = ENVIRONMENT + (GPU_ENVIRONMENT if device.type == "cuda" else ())
    facts: dict[str, Any] = {
        "mechanism": MECHANISM,
        "torch": torch.__version__,
        "torch's build": _short_digest(torch.__config__.show()),
        "numpy": np.__version__,
        "diffusers": version("diffusers"),
        "libc": " ".join(platform.libc_ver()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "fp32 precision": torch.get_float32_matmul_precision(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }
    return facts | (_gpu(device) if device.type == "cuda" else {})


def _gpu(device: torch.device) -> dict[str, Any]:
    driver = NVIDIA_DRIVER.read_text(encoding="utf-8").splitlines()[:1] if NVIDIA_DRIVER.exists() else []
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
        "allow_tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ],
    }


def _processor() -> str:
    """Return the first processor's model and a digest of its features; libraries choose their code by both."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").split("\n\n", maxsplit=1)[0].splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.replace("\t", "").partition(":")[::2] for line in lines)
    features = facts.get("flags", facts.get("Features", ""))
    return f"{facts.get('model name', platform.processor()).strip()} {_short_digest(features)}"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
