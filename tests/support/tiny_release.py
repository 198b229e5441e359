"""A small release, made as a run makes its own, and the keys that sign it."""

from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from curriculumdp.diffusion.networks import build_unet
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.release.certificate import Guarantee, PublicFacts
from curriculumdp.release.export import SampleSettings, certified_events, export_release

# Solved for ε = 6 next to the queries, as a plan is.
SIGMA = 1.1592
EVENTS = (
    PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3),
    PrivacyEvent("private", "subsampled_gaussian", 0.2, SIGMA, 40),
)
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "data": {"units": 1437, "classes": 3, "channels": 1, "size": 8},
    "privacy": {"epsilon": 6.0, "delta": 1e-4},
    "central": {"sample_rate": 0.1, "noise_multiplier": 5.0, "queries": 3, "size": 8, "clip_norm": None},
    "private": {"steps": 40, "sample_rate": 0.2, "clip_norm": 1.0},
    "sampling": {"sampler": "dpm", "steps": 3, "per_class": 2},
}


def guarantee(**changes: Any) -> Guarantee:
    facts: dict[str, Any] = {
        "epsilon": 6.0,
        "delta": 1e-4,
        "unit": "one image",
        "public": PublicFacts(units=1437, classes=3, image_shape=(1, 8, 8)),
        "events": certified_events(EVENTS, {"central": 4.0, "private": 1.0}),
        "stopped": "planned",
        "private_metrics_shown": False,
    }
    return Guarantee(**(facts | changes))


def write_release(folder: Path, **changes: Any) -> Path:
    """A release of an untrained 8-pixel network."""
    torch.manual_seed(0)
    classes = changes.get("guarantee", guarantee()).public.classes
    net = build_unet((8, 16), 8, 1, classes, True, blocks=1)
    given: dict[str, Any] = {
        "weights": dict(net.named_parameters()),
        "net_config": net.config,
        "sigma_data": 3**-0.5,
        "guarantee": guarantee(),
        "config": CONFIG,
        "central": torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8),
        "samples": SampleSettings("dpm", 3, 2, seed=0),
    }
    return export_release(folder, **(given | changes))


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """(private, public) Ed25519 keys in PEM files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public
