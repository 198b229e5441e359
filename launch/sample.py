"""python launch/sample.py RELEASE --num N --out DIR: sample synthetic images from a release.

Writes DIR/images.npz with images (uint8 [N, H, W, C]) and labels (int64 [N]). The same command gives the same images.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def main() -> int:
    from curriculumdp.command import Parser, one_line_errors

    parser = Parser(__doc__)
    parser.add_argument("release", type=Path, help="a release folder, such as runs/NAME/release")
    parser.add_argument("--num", type=int, required=True, metavar="N", help="number of images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for images.npz")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="also one picture of the first 100 images")
    parser.add_argument(
        "--labels", metavar="0,1,2", help="classes to sample in turn, by number or name (default: all)"
    )
    parser.add_argument("--png", action="store_true", help="also one file per image, in DIR/png")
    parser.add_argument("--sampler", default="dpm", choices=("dpm", "heun", "euler", "churn"))
    parser.add_argument("--steps", type=int, default=18, help="sampling steps (default 18)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="images at once (default 256)")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.release.sample import sample_release

        path = sample_release(
            asked.release, asked.num, asked.out, labels=asked.labels, sampler=asked.sampler,
            steps=asked.steps, seed=asked.seed, batch=asked.batch, png=asked.png, grid=asked.grid,
        )  # fmt: skip
        print(f"images: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
