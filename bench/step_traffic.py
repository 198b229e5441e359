"""python bench/step_traffic.py [--config FILE] [--draws K] [--ways ...] [--by-pattern]: a microbatch's memory traffic.

Needs no GPU: one microbatch of CONFIG's network runs on tensors without memory, and each library operation and each
launch of ours is logged with the bytes it moves and the operations it does (traffic_log.py). Prints, for each way, a
table by kind: passes, bytes and operations per image, and the time that they would take on an H100 (traffic_model.py
says what that rests on). Appends it to bench/results/step_traffic.csv with date and versions.

Ways: plain, forward and backward in torch; layer by layer, our engine as it was measured on a GPU, which networks still
get that the fused execution does not cover; sketch, the same with group norm and SiLU as one kernel and without
divisions by 1, the throw-away that was measured beside the other two; fused, the engine that training builds on a GPU.
Another engine is one more row of ENGINES.
"""

import argparse
import csv
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.bench_step import installed  # noqa: E402
from bench.traffic_log import Event, TrafficLog, logged, size  # noqa: E402
from bench.traffic_model import Row, table_of  # noqa: E402
from curriculumdp.clipping.kernel_rules import kernel_rules  # noqa: E402
from curriculumdp.clipping.layerwise import LayerByLayer  # noqa: E402
from curriculumdp.clipping.per_unit import PerUnitGradients  # noqa: E402
from curriculumdp.clipping.planned_engine import planned_engine  # noqa: E402
from curriculumdp.clipping.planned_store import PlannedStore  # noqa: E402
from curriculumdp.clipping.rules import Rule, Saved  # noqa: E402
from curriculumdp.command import one_line_errors  # noqa: E402
from curriculumdp.config.config import Config, load_config  # noqa: E402
from curriculumdp.curriculum.engine import EXPLAINED_MEMORY, engine_plan, stored_dtype  # noqa: E402
from curriculumdp.diffusion.denoiser import Denoiser  # noqa: E402
from curriculumdp.diffusion.loss import edm_loss, noise_level  # noqa: E402
from curriculumdp.diffusion.networks import UNet2DModel, build_unet  # noqa: E402

CONFIG = "configs/fashion_mnist_eps10.yaml"
RESULTS = ROOT / "bench" / "results" / "step_traffic.csv"
VERSIONS = ("torch", "triton", "diffusers")
COLUMNS = [
    *("date", *VERSIONS, "config", "units", "draws", "way", "kind", "passes"),
    *("mb_per_image", "gflop_per_image", "modelled_ms", "command"),
]

Engine = Callable[[UNet2DModel, Config, TrafficLog], PerUnitGradients]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=CONFIG, help=f"config file (default: {CONFIG})")
    parser.add_argument("--draws", type=int, help="K (default: the config's)")
    parser.add_argument("--ways", nargs="+", choices=["plain", *ENGINES], default=["plain", *ENGINES])
    parser.add_argument("--by-pattern", action="store_true", help="print a row per kind and pattern")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV")
    asked = parser.parse_args()
    with one_line_errors():
        config = load_config(asked.config, [f"private.draws={asked.draws}"] if asked.draws else [])
    images = config.compute.microbatch * config.private.draws
    print(f"{config.name}: {config.compute.microbatch} units x K = {config.private.draws}, per image")
    for way in asked.ways:
        events = traffic_of(way, config)
        show(way, table_of(events), images)
        if asked.by_pattern:
            show("by pattern", table_of([replace(e, kind=f"{e.kind}, {e.pattern}") for e in events]), images)
        keep(asked.out, way, table_of(events), config)
    print(f"-> {asked.out}")
    return 0


def traffic_of(way: str, config: Config) -> list[Event]:
    """Return the passes of a microbatch of `config` done in this way."""
    if way == "plain":
        return traffic_of_plain(config)
    events = traffic_of_engine(ENGINES[way], config)
    if way == "layer by layer":  # as it was measured, with the tile before
        return events
    return [as_tiled(e) for e in events if way != "sketch" or e.kind != "division"]


def traffic_of_plain(config: Config) -> list[Event]:
    """Return the passes of forward and backward of the mean loss."""
    with logged() as log:
        net = fake_net(config)
        losses = losses_of(net, config)
        log.events.clear()
        losses().mean().backward()
    return log.events


def traffic_of_engine(make_engine: Engine, config: Config) -> list[Event]:
    """Return the passes of a private microbatch on the engine that `make_engine` returns for a network."""
    units = config.compute.microbatch
    with logged() as log:
        net = fake_net(config)
        losses = losses_of(net, config)
        engine = make_engine(net, config, log)
        total = torch.zeros(engine.total, dtype=torch.int64)
        present = torch.ones(units, dtype=torch.bool)
        log.events.clear()
        engine.backward(lambda: losses().view(units, config.private.draws).mean(1))
        engine.add_clipped_grads(total, config.private.clip_norm, present)
    return log.events


def fake_net(config: Config) -> UNet2DModel:
    """Return the config's network with weights without memory, in the config's memory format."""
    model, data = config.model, config.data
    with torch.device("meta"):
        net = build_unet(
            model.channels,
            data.size,
            data.channels,
            data.classes,
            config.private.label_dropout > 0,
            blocks=model.blocks,
            attention=model.attention,
            groups=model.norm_groups,
        )
    for layer in net.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            form = layout(config) if weight.dim() == 4 else torch.contiguous_format
            layer._parameters[name] = nn.Parameter(torch.empty_like(weight, device="cpu", memory_format=form))
    return net


def layout(config: Config) -> torch.memory_format:
    """Return the config's memory format."""
    return torch.channels_last if config.compute.memory_format == "channels_last" else torch.contiguous_format


def losses_of(net: nn.Module, config: Config) -> Callable[[], Tensor]:
    """Return a function that returns the losses [N] of a microbatch, as the private phase computes them."""
    data, private = config.data, config.private
    samples = config.compute.microbatch * private.draws
    shape = (samples, data.channels, data.size, data.size)
    images, noise = (torch.empty(shape).contiguous(memory_format=layout(config)) for _ in range(2))
    level, labels = torch.empty(samples), torch.empty(samples, dtype=torch.int64)

    def losses() -> Tensor:
        sigma = noise_level(level, private.p_mean, private.p_std)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.compute.precision == "bf16"):
            return edm_loss(Denoiser(net, private.sigma_data), images, labels, sigma, noise)

    return losses


def fused(net: UNet2DModel, config: Config, log: TrafficLog) -> PerUnitGradients:
    """Return the engine that `build_engine` returns on a GPU with an H100's memory."""
    compute, draws = config.compute, config.private.draws
    return planned_engine(
        net,
        compute.microbatch,
        draws,
        engine_plan(net, compute, draws, EXPLAINED_MEMORY),
        stored_dtype(compute),
        channels_last=compute.memory_format == "channels_last",
    )


def layer_by_layer(
    net: UNet2DModel, config: Config, log: TrafficLog, norm: Rule | None = None
) -> PerUnitGradients:
    """Return the engine on a GPU for networks that the fused execution does not cover; norm: another rule for norms."""
    compute, draws = config.compute, config.private.draws
    plan = engine_plan(net, compute, draws, EXPLAINED_MEMORY)
    covered = kernel_rules(net, channels_last=compute.memory_format == "channels_last")
    rules = {
        id(layer): norm if norm is not None and isinstance(layer, nn.GroupNorm) else rule
        for layer, rule in covered.values()
    }
    ways = {name: plan.way(name) for name in covered}
    store = PlannedStore(net, compute.microbatch, ways, stored_dtype(compute))
    return PerUnitGradients(net, compute.microbatch, draws, store, LayerByLayer(net, rules))


def sketch(net: UNet2DModel, config: Config, log: TrafficLog) -> PerUnitGradients:
    """Return the layer-by-layer engine with group norm and SiLU as one kernel, by its description.

    Its programs own complete samples, its output is bf16, and torch adds the per-sample sums of channels.
    """

    def forward(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Saved]:
        y = torch.empty_like(x)
        log.add("norm", "norm and SiLU", size(x, y), "rows")
        return y, (x,)

    def backward(layer: nn.GroupNorm, saved: Saved, grad: Tensor, wants_input: bool, sink: Any) -> Tensor:
        (x,) = saved
        grad_x, sums = torch.empty_like(x), torch.empty(2, *x.shape[:2])
        log.add("norm", "norm and SiLU, backward", size(x, grad, grad_x, sums), "rows backward")
        for weight, part in zip((layer.weight, layer.bias), sums, strict=True):
            sink.segment(weight)[0].copy_(part.view(sink.units, -1, x.shape[1]).sum(1))
        sink.parts(id(layer), 1)
        return grad_x

    engine = layer_by_layer(net, config, log, Rule(forward, backward))
    for layer in list(net.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.SiLU):
                setattr(layer, name, nn.Identity())
    return engine


def as_tiled(event: Event) -> Event:
    """Return the pass with the present tile of per-unit weight gradients, which the sketch was measured with."""
    return replace(event, pattern=event.pattern.replace("unit product", "unit product, 64 deep"))


ENGINES: dict[str, Engine] = {"layer by layer": layer_by_layer, "sketch": sketch, "fused": fused}


def show(title: str, rows: Sequence[Row], images: int) -> None:
    """Print the table of one way."""
    print(f"\n{title:<46} {'passes':>6} {'MB':>9} {'GFLOP':>8} {'modelled ms':>12}")
    for row in rows:
        values = f"{row.passes:>6} {row.bytes / images / 1e6:>9.3f} {row.flops / images / 1e9:>8.3f}"
        print(f"  {row.kind:<44} {values} {row.seconds * 1e3:>12.2f}", flush=True)


def keep(path: Path, way: str, rows: Sequence[Row], config: Config) -> None:
    """Append a way's rows to the CSV, with date, versions and command."""
    units, draws = config.compute.microbatch, config.private.draws
    about = {
        "date": date.today().isoformat(),
        "config": config.name,
        "units": units,
        "draws": draws,
        "way": way,
    }
    about |= {package: installed(package) for package in VERSIONS}
    about["command"] = shlex.join(["python", *sys.argv])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            figures = {
                "mb_per_image": f"{row.bytes / units / draws / 1e6:.4f}",
                "gflop_per_image": f"{row.flops / units / draws / 1e9:.4f}",
                "modelled_ms": f"{row.seconds * 1e3:.3f}",
            }
            writer.writerow(about | {"kind": row.kind, "passes": row.passes} | figures)


if __name__ == "__main__":
    sys.exit(main())
