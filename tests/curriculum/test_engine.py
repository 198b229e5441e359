"""The engine that a run gets, planned from shapes alone: on the meta device nothing is computed."""

import pytest
import torch

from curriculumdp.clipping.layer_plan import PlanError
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.config.config import load_config
from curriculumdp.curriculum.engine import build_engine, engine_plan, execution, explained
from curriculumdp.diffusion.networks import UNet2DModel, build_unet

CONFIG = "configs/fashion_mnist_eps10.yaml"
GIB = 2**30


def meta_unet(channels, size=64):
    with torch.device("meta"):
        return build_unet(channels, size, 3, 10, False, blocks=2, attention=(16,))


def test_a_network_of_100_million_parameters_at_batch_64_is_planned_by_recompute():
    net = meta_unet((128, 256, 384, 640))
    assert sum(p.numel() for p in net.parameters()) > 100e6
    compute = load_config(CONFIG, ["compute.precision=fp32"]).compute
    whole = engine_plan(net, compute, 1, 10**13)
    memory = 24 * GIB
    plan = engine_plan(net, compute, 1, memory)
    stored = 64 * 4 * sum(p.numel() for p in net.parameters())
    assert stored > plan.memory
    assert plan.kept <= plan.memory < memory
    ways = [layer.way for layer in plan.layers]
    assert ways.count("recompute") > len([layer for layer in whole.layers if layer.way == "store"]) // 10
    with pytest.raises(PlanError, match=r"lower compute\.microbatch"):
        engine_plan(net, compute, 1, GIB // 100)


def test_explain_names_every_layer_of_a_shipped_recipe():
    text = explained(load_config(CONFIG))
    assert "conv_in" in text
    assert "class_embedding" in text
    assert "64 units, 32 draws" in text.splitlines()[-1]
    assert text.splitlines()[0] == "execution: fused, in one layout"


def test_explain_names_what_runs_layer_by_layer():
    with torch.device("meta"):
        net = UNet2DModel(**{**meta_unet((8, 16, 16)).config, "downsample_padding": 0})
    assert execution(net) == (
        "execution: layer by layer, since down_blocks.0.downsamplers.0 (Downsample2D): uneven padding"
    )


def test_a_cpu_gets_the_torch_engine():
    net = build_unet((8, 16), 8, 1, 10, False, blocks=1)
    compute = load_config(
        CONFIG, ["compute.device=cpu", "compute.precision=fp32", "compute.microbatch=2"]
    ).compute
    assert type(build_engine(net, compute, 1)) is PerUnitGradients
