"""What the planner chooses, and that it says so."""

import pytest
import torch
from torch import nn

from curriculumdp.clipping.layer_plan import LayerShape, PlanError, explain, layer_shapes, plan_layers

GIB = 2**30
WIDE = LayerShape("wide", "Conv2d", rows=512, columns=4608, positions=64, inputs=512 * 64, weights=512 * 4609)
EARLY = LayerShape("early", "Conv2d", rows=64, columns=576, positions=784, inputs=64 * 784, weights=64 * 577)
CLASS = LayerShape("class", "Linear", rows=256, columns=256, positions=1, inputs=256, weights=256 * 257)
NORM = LayerShape("norm", "GroupNorm", rows=64, columns=1, positions=784, inputs=64 * 784, weights=128)


def test_a_small_layer_with_many_positions_is_stored_and_a_wide_one_with_few_recomputed() -> None:
    plan = plan_layers([WIDE, EARLY, NORM], units=64, draws=1, memory=64 * GIB)
    assert (plan.way("wide"), plan.way("early"), plan.way("norm")) == ("recompute", "store", "store")


def test_more_draws_make_storing_worth_it() -> None:
    assert plan_layers([WIDE], units=64, draws=16, memory=64 * GIB).way("wide") == "store"


def test_one_position_per_draw_is_done_from_the_factors() -> None:
    assert plan_layers([CLASS], units=64, draws=8, memory=GIB).way("class") == "factors"


def test_what_does_not_fit_is_recomputed_and_the_plan_stays_within_memory() -> None:
    layers = [WIDE, EARLY]
    roomy = plan_layers(layers, units=64, draws=16, memory=64 * GIB)
    tight = plan_layers(layers, units=64, draws=16, memory=roomy.kept // 2)
    assert roomy.way("wide") == "store"
    assert tight.way("wide") == "recompute"
    assert tight.kept <= roomy.kept // 2


def test_memory_that_no_choice_fits_is_refused_with_the_fix() -> None:
    with pytest.raises(PlanError, match=r"lower compute\.microbatch"):
        plan_layers([NORM, WIDE], units=64, draws=1, memory=1000)


def test_shapes_are_seen_in_one_forward() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 5)
    )
    shapes = {shape.name: shape for shape in layer_shapes(net, lambda: net(torch.zeros(1, 3, 4, 4)))}
    assert shapes["0"] == LayerShape("0", "Conv2d", 8, 27, positions=4, inputs=48, weights=8 * 27 + 8)
    assert shapes["1"] == LayerShape("1", "GroupNorm", 8, 1, positions=4, inputs=32, weights=16)
    assert shapes["3"] == LayerShape("3", "Linear", 5, 32, positions=1, inputs=32, weights=5 * 33)


def test_the_table_names_every_layer_its_way_and_the_total() -> None:
    text = explain(plan_layers([WIDE, CLASS], units=64, draws=1, memory=GIB))
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["wide", "class"]
    assert "recompute" in text.splitlines()[1]
    assert "of 1024 MiB kept" in text.splitlines()[-1]
