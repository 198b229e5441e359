"""python bench/bench_decode.py [--count N] [--size PX] [--pixels PX]: how fast images are decoded, and in what memory.

Makes N noisy PNG files of PX pixels in a temporary folder, decodes them into a cache, then reads the cache, each in a
process of its own as a rank does. Prints images per second, seconds, and MiB of memory: what the process alone holds
("own"), and what it shares with the other ranks of its node ("mapped").
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def make(folder: Path, count: int, pixels: int) -> None:
    """Write `count` PNG files in one class."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "class").mkdir()
    for number in range(count):
        values = rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "class" / f"{number:06d}.png", compress_level=1)


def load(folder: Path, cache: Path, count: int, size: int) -> dict[str, float]:
    """Load the set as a rank does, look at each image once, and return seconds and MiB."""
    from curriculumdp.data.sources import load_images

    before, start = memory(), time.perf_counter()
    found = load_images(
        source="image_folder", path=str(folder), classes=1, channels=3, size=size, units=count, cache=cache
    )
    seconds = time.perf_counter() - start
    assert found.images.max() > 0
    after = memory()
    return {"seconds": seconds} | {kind: after[kind] - before[kind] for kind in after}


def memory() -> dict[str, float]:
    """Return this process's resident memory in MiB, by kind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"own": sizes["RssAnon"], "mapped": sizes["RssFile"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="number of files (default: 5000)")
    parser.add_argument("--size", type=int, default=64, help="height and width to decode to (default: 64)")
    parser.add_argument("--pixels", type=int, default=64, help="height and width of the files (default: 64)")
    parser.add_argument("--load", nargs=2, type=Path, metavar=("FOLDER", "CACHE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        print(json.dumps(load(*asked.load, asked.count, asked.size)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        make(folder, asked.count, asked.pixels)
        words = [sys.executable, __file__, "--count", str(asked.count), "--size", str(asked.size)]
        print(f"{asked.count} files of {asked.pixels} px, decoded to {asked.size} px")
        for what in ("decode", "from the cache"):
            done = subprocess.run(
                [*words, "--load", str(folder), f"{place}/cache"], check=True, capture_output=True, text=True
            )
            figures = json.loads(done.stdout)
            rate = asked.count / figures["seconds"]
            print(
                f"{what:15} {figures['seconds']:7.2f} s {rate:9.0f} images/s   "
                f"own {figures['own']:6.0f} MiB   mapped {figures['mapped']:6.0f} MiB"
            )


if __name__ == "__main__":
    main()
