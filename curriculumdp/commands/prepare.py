"""curriculumdp-prepare camelyon17|celeba|pcam FOLDER --out FILE.npz: make a published set into what configs read.

FOLDER is where the set was unpacked, as its authors lay it out: Camelyon17 of WILDS (metadata.csv, patches/), CelebA
(img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt) or PatchCamelyon (two h5 files a split, needs h5py).
Exit status: 0 success, 2 invalid input.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("set", choices=["camelyon17", "celeba", "pcam"], help="which published set it is")
    parser.add_argument("folder", type=Path, help="where it was unpacked")
    parser.add_argument("--out", type=Path, required=True, help="the npz file to write")
    parser.add_argument("--split", choices=["train", "test"], default="train", help="default: train")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (default: 32)")
    asked = parser.parse_intermixed_args()
    if not 4 <= asked.size <= 1024:
        parser.error("--size must be between 4 and 1024")

    with one_line_errors():
        from curriculumdp.data.published import prepare

        def say(line: str) -> None:
            print(line, flush=True)

        say(prepare(asked.set, asked.folder, asked.out, asked.split, asked.size, say))
    return 0


if __name__ == "__main__":
    sys.exit(main())
