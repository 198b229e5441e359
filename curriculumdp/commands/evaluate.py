"""curriculumdp-evaluate RELEASE --real SET: evaluate a release's images against real held-out ones.

Utility (classifiers trained on synthetic images and tested on real ones), fidelity (FD or FID, KID, precision,
recall) and, with --train, memorisation. Sets: digits, idx:PATH, npz:PATH, medmnist:PATH (its test split),
folder:PATH. Metrics from a public real set go to OUT/evaluation/, all others to OUT/private/evaluation/, which may not
leave.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("release", type=Path, help="a release folder, such as runs/NAME/release")
    parser.add_argument("--real", required=True, help="real images to test on; none may have been trained on")
    parser.add_argument(
        "--csv", type=Path, help="table of labels, path,label, of the folder that --real names"
    )
    parser.add_argument("--public-real", action="store_true", help="the real set is public (as digits is)")
    parser.add_argument("--train", help="the training set: memorisation and references, all PRIVATE")
    parser.add_argument("--train-csv", type=Path, help="table of labels of the folder that --train names")
    parser.add_argument(
        "--allow-training-images", action="store_true", help="go on if all of --real was trained on"
    )
    parser.add_argument("--features", help="PUBLIC set for the feature network (default: half the real set)")
    parser.add_argument("--inception", type=Path, help="PUBLIC Inception weights to use instead of it")
    parser.add_argument("--num", type=int, help="synthetic images per seed (default 2000; papers: 60000)")
    parser.add_argument("--seeds", type=int, help="synthetic sets, classifiers of each kind (default 3)")
    parser.add_argument("--classifiers", help="among logistic,mlp,cnn,wrn (default: all; wrn on a GPU only)")
    parser.add_argument("--quick", action="store_true", help="a first look: 500 images, 1 seed, mlp alone")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="folder for the results (default: the release's run)")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.evaluation.evaluate import evaluate_release
        from curriculumdp.evaluation.record import table
        from curriculumdp.evaluation.released import read_released
        from curriculumdp.evaluation.request import requested

        request = requested(vars(asked))
        released = read_released(asked.release)
        folder = asked.out or asked.release.resolve().parent
        public, private = evaluate_release(
            released, request, folder, lambda text: print(text, file=sys.stderr, flush=True)
        )
        print(table(public, private))
        print(f"written under {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
