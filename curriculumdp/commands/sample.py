"""curriculumdp-sample RELEASE --num N --out DIR: sample synthetic images from a release.

Writes DIR/images.npz with images (uint8 [N, H, W, C]) and labels (int64 [N]). With --png also DIR/png, to publish: PNG
files with their labels as Hugging Face's imagefolder loads them, a dataset card and the release's certificate. Sampler
and steps are the release's own, unless --for or they themselves are given. The same command gives the same images.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("release", type=Path, help="a release folder, such as runs/NAME/release")
    parser.add_argument("--num", type=int, required=True, metavar="N", help="number of images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for images.npz")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="also one picture of the first 100 images")
    parser.add_argument("--labels", metavar="0,1,2", help="classes by number or name (default: all)")
    parser.add_argument("--png", action="store_true", help="also DIR/png: one file per image, labels, a card")
    parser.add_argument("--license", metavar="ID", help="licence that the card states, such as cc-by-4.0")
    parser.add_argument(
        "--push-to-hub", metavar="REPO", help="upload DIR/png, to a private repository if new"
    )
    parser.add_argument(
        "--for", dest="purpose", choices=("utility", "fidelity"), help="classifiers' accuracy, or a low FD"
    )
    parser.add_argument("--sampler", choices=("dpm", "heun", "euler", "churn"), help="default: the release's")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the release's)")
    parser.add_argument("--guidance", type=float, metavar="W", help="if a null class was trained; 1: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="images at once (default 256)")
    asked = parser.parse_intermixed_args()
    for option in ("license", "push_to_hub"):
        if getattr(asked, option) is not None and not asked.png:
            parser.error(f"--{option.replace('_', '-')} is about the folder that --png writes: add --png")

    with one_line_errors():
        if asked.push_to_hub is not None:
            from curriculumdp.release.hub import push, require_repo

            require_repo(asked.push_to_hub)

        from curriculumdp.release.sample import PICTURES, sample_release

        path, manner = sample_release(
            asked.release, asked.num, asked.out, labels=asked.labels, purpose=asked.purpose,
            sampler=asked.sampler, steps=asked.steps, guidance=asked.guidance, seed=asked.seed,
            batch=asked.batch, png=asked.png, grid=asked.grid, license_=asked.license,
        )  # fmt: skip
        print(f"images: {path} ({manner})" + (f"\nto publish: {asked.out / PICTURES}" if asked.png else ""))
        if asked.push_to_hub is not None:
            print(f"uploaded: {push(asked.out / PICTURES, asked.push_to_hub, 'dataset', ['*'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
