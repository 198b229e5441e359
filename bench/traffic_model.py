"""Turn a log of passes into a modelled time on an H100, and into the table of step_traffic.py.

A pass takes the longer of its bytes at 3.0 TB/s (the copy speed measured on that card) and its operations at 450
TFLOP/s (what cuDNN reaches on these convolutions), both times its pattern's efficiency. The measurements are of
2026-11-27 (one H100 80GB HBM3, torch 2.11, triton 3.6; Fashion-MNIST recipe at 687fcc0, 64 units x K = 32, bf16,
channels_last): a profile of whole steps by row, and single kernels.

FITTED to one row of the profile: the log's bytes at full speed over the measured time.
    copied across layouts   the plain step's layout copies, 65.5 ms
    across layouts          the plain step's SiLU backward, 12.3 ms: its gradient comes in the other layout
    cast                    the plain step's casts, 23.5 ms; used for concatenation too
    strided                 the plain step's adds that are not vectorised, 18.1 ms with those across layouts
    library norm            the plain step's group norms, 36.7 ms
    attention               our step's attention, 2.9 ms
DERIVED from calls of single kernels, not from the profile:
    group runs              our group norm, whose programs own one group and access 8 bytes of every 128: whole sectors
                            of 32 bytes at full speed over the measured time of eight calls
    rows, rows backward     the sketch's norm, whose programs own complete samples: 0.137 of 0.214 and 0.274 of 0.454 ms
                            forward, 0.206 of 0.448 and 0.411 of 0.85 ms backward (64 and 128 channels at 28 px)
    unit product            204 TFLOP/s, the per-unit weight gradient of a 3x3 convolution, 64→64 at 28 px
    unit product, 64 deep   248 TFLOP/s, the same with tile (64, 64, 64) and 8 warps, as in the sketch and since: at
                            the other shapes measured, 3x3 and 1x1, the present tiles gain 13 to 23 %. Rows of taps,
                            which the fused execution runs for most of them, were not measured and count the same
ASSUMED: full speed for streamed passes and for the library's products.

Everything else checks the model: the totals of the layer-by-layer step (149.7 ms) and of the sketch (68.1), and every
other row. Rows that it misses, modelled and measured: layout copies, layer by layer (9.2; 15.1) and in the sketch (9.2;
2.5), for which the log has 21 passes each and the profile 28 and 9; adds that are not vectorised, in both (12.2; 9.1);
other adds and divisions, layer by layer (5.5; 4.1 and 2.9; 1.9). The fused execution was not measured.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.traffic_log import Event

BYTES_PER_SECOND = 3.0e12
FLOPS = 450e12
EFFICIENCY = {
    "streamed": 1.0,
    "product": 1.0,
    "copied across layouts": 0.31,
    "across layouts": 0.61,
    "cast": 0.74,
    "strided": 0.36,
    "library norm": 0.59,
    "attention": 0.43,
    "group runs": 0.56,
    "rows": 0.62,
    "rows backward": 0.47,
    "unit product": 0.45,
    "unit product, 64 deep": 0.55,
}


@dataclass
class Row:
    """The passes of one kind: how many, their bytes, operations and modelled seconds, for one microbatch."""

    kind: str
    passes: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, event: Event) -> None:
        """Count one pass."""
        self.passes += 1
        self.bytes += event.bytes
        self.flops += event.flops
        self.seconds += seconds_of(event)


def seconds_of(event: Event) -> float:
    """Return the modelled time of a pass; raise KeyError for a pattern without an efficiency."""
    moved = event.bytes if event.moved is None else event.moved
    full_speed = max(moved / BYTES_PER_SECOND, event.flops / FLOPS)
    return full_speed / EFFICIENCY[event.pattern]


def table_of(events: Sequence[Event]) -> list[Row]:
    """Return a row per kind, the slowest first, and last a row "total"."""
    rows: dict[str, Row] = defaultdict(lambda: Row(""))
    total = Row("total")
    for event in events:
        row = rows[event.kind]
        row.kind = event.kind
        row.add(event)
        total.add(event)
    return [*sorted(rows.values(), key=lambda row: -row.seconds), total]
