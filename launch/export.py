"""python launch/export.py RUN --out DIR [--sign KEY] [--end-run]: a release of a run, in a folder that may leave.

A run that is not finished is exported only with --end-run, which ends it for good (its certificate says:
operator) once its release is written. KEY is an Ed25519 private key in PEM: openssl genpkey -algorithm ed25519
-out key.pem. Exit status: 0 done, 2 a bad input.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def main() -> int:
    from curriculumdp.command import Parser, one_line_errors

    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run, such as runs/digits")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the release's folder: new, empty, or the run's own",
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="private key that signs the certificate")
    parser.add_argument("--end-run", action="store_true", help="end a run that is not finished, for good")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.curriculum.train import export_run

        print(f"release: {export_run(asked.run, asked.out, asked.sign, end_run=asked.end_run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
