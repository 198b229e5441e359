"""Plot of the newest rows of a CSV written by bench_step.py."""

import csv
from pathlib import Path


def plot(results: Path, picture: Path) -> None:
    """Plot each way's time over the plain step's by draws, with quartiles, one panel per network. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    with results.open(newline="") as file:
        newest = {
            (row["net"], row["way"], int(row["draws"])): row for row in csv.DictReader(file) if row["ms"]
        }
    nets = list(dict.fromkeys(net for net, _, _ in newest))
    figure, axes = plt.subplots(1, len(nets), figsize=(5 * len(nets), 4), squeeze=False)
    for axis, net in zip(axes[0], nets, strict=True):
        ways = list(dict.fromkeys(way for one, way, _ in newest if one == net))
        for way in ways:
            rows = sorted((k, row) for (one, other, k), row in newest.items() if (one, other) == (net, way))
            middle = [float(row["ratio"]) for _, row in rows]
            below = [m - float(row["ratio_q1"]) for m, (_, row) in zip(middle, rows, strict=True)]
            above = [float(row["ratio_q3"]) - m for m, (_, row) in zip(middle, rows, strict=True)]
            axis.errorbar([k for k, _ in rows], middle, (below, above), marker="o", capsize=2, label=way)
        row = next(row for (one, _, _), row in newest.items() if one == net)
        axis.set(title=f"{net}, {row['units']} units, {row['precision']}", xlabel="draws K", yscale="log")
        axis.yaxis.set_major_locator(FixedLocator([1, 1.2, 1.5, 2, 3, 4, 6, 8]))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted({k for one, _, k in newest if one == net}))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("time / plain step")
    axes[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    device = next(iter(newest.values()))
    figure.suptitle(f"{device['device']}, torch {device['torch']}, {device['date']}", fontsize="small")
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
