"""curriculumdp-new --source S --units N --classes K --size PX --channels C --epsilon E [...]: write a config.

Every option follows by a rule from these public figures; no image is read. The config goes to standard output, or
to --out. Exit status: 0 success, 2 invalid input.
"""

import os
import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors
from curriculumdp.errors import UserError


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--source", default="image_folder", help="kind of the data (default: image_folder)")
    parser.add_argument("--path", help="folder or file of the images")
    parser.add_argument("--csv", help="table of the images: path,label[,unit]")
    parser.add_argument("--roster", help="public file of all unit ids, one per line")
    parser.add_argument("--unit", help="what a unit is, e.g. 'all images of one patient'")
    parser.add_argument("--units", type=int, required=True, help="number of units: people, or images")
    parser.add_argument("--classes", type=int, required=True, help="number of classes")
    parser.add_argument(
        "--size", type=int, required=True, help="height and width of the model's images, in pixels"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), required=True, help="1 for grey, 3 for RGB")
    parser.add_argument("--epsilon", type=float, required=True, help="the budget ε of the whole run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what it trains on")
    parser.add_argument("--hours", type=float, help="hours of training (default: 0.1 on a CPU, 1 on a GPU)")
    parser.add_argument("--cores", type=int, default=min(os.cpu_count() or 1, 4), help="CPU cores to use")
    parser.add_argument("--name", default="new", help="name of the run")
    parser.add_argument("--out", type=Path, help="file to write (default: standard output)")
    parser.add_argument(
        "data", nargs="*", metavar="data.key=value", help="other options of the data, such as data.fit=pad"
    )
    asked = parser.parse_intermixed_args()
    with one_line_errors():
        if asked.out is not None and os.path.lexists(asked.out):
            raise UserError(f"{asked.out}: exists already: give another --out, or remove it first")
        from curriculumdp.curriculum.new import new_config

        text, warnings = new_config(vars(asked))
        for line in warnings:
            print(f"warning: {line}", file=sys.stderr)
        if asked.out is None:
            print(text, end="")
        else:
            with asked.out.open("x", encoding="utf-8") as file:  # an existing config is not overwritten
                file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
