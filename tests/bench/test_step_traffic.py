"""The modelled traffic of a step: the measured times come out, and the shipped engine's bytes do not grow."""

import csv
from functools import lru_cache

import pytest
import torch

from bench import step_traffic
from bench.bench_step import installed
from bench.step_traffic import CONFIG, RESULTS, VERSIONS, as_tiled, traffic_of
from bench.traffic_log import Event, logged, pattern_of, size
from bench.traffic_model import BYTES_PER_SECOND, EFFICIENCY, Row, seconds_of, table_of
from curriculumdp.config.config import load_config
from dpkernels.conv2d_triton import Geometry, conv2d_grads, conv2d_parts

# Measured on an H100, in ms per microbatch; traffic_model.py says where.
MEASURED = {"plain": 202.9, "layer by layer": 149.7, "sketch": 68.1}
CHECKED_ROWS = {
    ("layer by layer", "silu"): 12.5,
    ("layer by layer", "casts"): 12.3,
    ("layer by layer", "norm"): 52.2,
    ("sketch", "norm"): 12.3,
}
GB = 10**9


@lru_cache
def rows(way: str) -> dict[str, Row]:
    return {row.kind: row for row in table_of(traffic_of(way, load_config(CONFIG)))}


def test_the_modelled_times_and_their_ratios_are_the_measured_ones_within_a_quarter() -> None:
    modelled = {way: rows(way)["total"].seconds * 1e3 for way in MEASURED}
    for way, measured in MEASURED.items():
        assert modelled[way] == pytest.approx(measured, rel=0.25), way
        assert modelled[way] / modelled["plain"] == pytest.approx(measured / MEASURED["plain"], rel=0.25), way


@pytest.mark.parametrize("row", CHECKED_ROWS, ids=str)
def test_rows_to_which_nothing_was_fitted_are_the_measured_ones_within_a_quarter(
    row: tuple[str, str],
) -> None:
    way, kind = row
    assert rows(way)[kind].seconds * 1e3 == pytest.approx(CHECKED_ROWS[row], rel=0.25)


def test_the_arithmetic_is_that_of_the_network() -> None:
    """7 TFLOP per 2048 images: forward, input gradient and weight gradient, each the same product."""
    for way in MEASURED:
        assert rows(way)["total"].flops == pytest.approx(7e12, rel=0.1)
    plain, ours = rows("plain"), rows("layer by layer")
    assert ours["convolution"].flops == plain["convolution"].flops


COPY = (
    2 * 2 * 64 * 28 * 28
)  # bytes per image of one pass over one activation of the first level, read and written


def test_the_shipped_engines_bytes_per_image_do_not_grow() -> None:
    """Lower the figure by running step_traffic.py again. Libraries of other versions may do some passes more."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["way"], line["kind"]) == ("fused", "total")]
    config = load_config(CONFIG)
    setting = (config.name, str(config.compute.microbatch), str(config.private.draws))
    kept = [line for line in lines if (line["config"], line["units"], line["draws"]) == setting][-1]
    allowed = COPY if all(kept[package] == installed(package) for package in VERSIONS) else 10 * COPY
    images = config.compute.microbatch * config.private.draws
    assert rows("fused")["total"].bytes / images < 1e6 * float(kept["mb_per_image"]) + allowed


def test_the_fused_execution_moves_at_most_a_third_of_the_bytes_of_the_engine_layer_by_layer() -> None:
    assert rows("fused")["total"].bytes <= rows("layer by layer")["total"].bytes / 3


def test_each_pass_that_was_fused_is_gone() -> None:
    """Whole activations are added only around the down-sampling, whose convolution is a library's."""
    config = load_config(CONFIG)
    images = config.compute.microbatch * config.private.draws
    added = [e for e in traffic_of("fused", config) if e.name == "rows_triton._add_kernel"]
    assert [round(2 * e.bytes / images / COPY) for e in added if e.bytes > images * COPY / 2] == [3, 3]
    kinds = rows("fused")
    assert not kinds.keys() & {"up-sampling"}
    for kind in ("concatenation", "layout copies", "silu", "division"):
        assert kinds[kind].bytes / images < COPY / 20, kind


def test_bytes_are_of_distinct_elements_and_views_move_nothing() -> None:
    with logged() as log:
        x = torch.empty(4, 8, 2, 2)
        assert size(x.expand(4, 8, 2, 2), x[:1].expand(4, 8, 2, 2)) == 4 * (128 + 32)
        log.events.clear()
        x.view(4, 32).t()
        torch.empty_like(x)
        assert log.events == []
        x.add_(1)
        assert [(event.kind, event.bytes) for event in log.events] == [("adds", 4 * 128)]


def test_patterns_tell_layouts_and_broadcasts_apart() -> None:
    x = torch.empty(4, 8, 2, 2)
    last = x.contiguous(memory_format=torch.channels_last)
    assert pattern_of([x, x]) == pattern_of([last, last]) == "streamed"
    assert pattern_of([x, last]) == "across layouts"
    assert pattern_of([last, torch.empty(8, 1, 1)]) == pattern_of([last[:, :4], last[:, 4:]]) == "strided"


def test_a_convolution_copies_a_foreign_layout_and_adds_its_bias_in_another_pass() -> None:
    with logged() as log:
        x = torch.empty(4, 8, 5, 5)
        last = x.contiguous(memory_format=torch.channels_last)
        weight = torch.empty(8, 8, 3, 3).contiguous(memory_format=torch.channels_last)
        log.events.clear()
        torch.conv2d(last, weight, torch.empty(8), padding=1)
        assert [event.kind for event in log.events] == ["convolution", "adds"]
        assert log.events[0].flops == 2 * (4 * 8 * 25) * (8 * 9)
        log.events.clear()
        torch.conv2d(x, weight, None, padding=1)
        assert [event.kind for event in log.events] == ["layout copies", "convolution"]


def test_a_weight_gradient_without_a_bias_reads_the_gradient_once() -> None:
    """The launcher passes the gradient again in place of the bias, which the kernel then does not touch."""
    with logged() as log:
        shapes = (4, 8, 5, 5), (4, 6, 5, 5), (2, 6, 8, 3, 3), (2, 6)
        x, g, weight, bias = (torch.empty(shape) for shape in shapes)
        squares = torch.empty(2, conv2d_parts((6, 8, 3, 3), True, x.dtype), dtype=torch.float64)
        for added in (None, bias):
            conv2d_grads(x, g, weight, added, Geometry(padding=(1, 1)), squares=squares)
    sizes = [event.bytes for event in log.events]
    assert sizes == [size(x, g, weight, squares), size(x, g, weight, bias, squares)]


def test_a_time_is_the_longer_of_bytes_and_operations_at_its_patterns_efficiency() -> None:
    assert seconds_of(Event("a", "b", BYTES_PER_SECOND)) == 1
    assert seconds_of(Event("a", "b", BYTES_PER_SECOND, "strided")) == 1 / EFFICIENCY["strided"]
    assert seconds_of(Event("a", "b", GB, flops=450e12)) == 1
    assert seconds_of(Event("a", "b", GB, moved=2 * BYTES_PER_SECOND)) == 2
    assert as_tiled(Event("a", "b", GB, "unit product")).pattern == "unit product, 64 deep"
    with pytest.raises(KeyError):
        seconds_of(Event("a", "b", GB, "unknown"))


def test_the_command_prints_a_table_and_keeps_it(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "traffic.csv"
    command = [
        "step_traffic.py",
        "--config",
        "configs/digits.yaml",
        "--draws",
        "2",
        "--ways",
        "layer by layer",
        "--out",
        str(out),
    ]
    monkeypatch.setattr("sys.argv", command)
    assert step_traffic.main() == 0
    assert "modelled ms" in capsys.readouterr().out
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[-1]["kind"] == "total"
    assert float(lines[-1]["mb_per_image"]) == pytest.approx(
        sum(float(line["mb_per_image"]) for line in lines[:-1]), abs=0.01
    )
