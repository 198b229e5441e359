"""curriculumdp-export RUN --out DIR [--sign KEY] [--end-run]: write a run's release to a folder that may leave.

An unfinished run is exported only with --end-run, which ends it for good once its release is written; its certificate
then states stopped: operator. KEY is an Ed25519 private key in PEM, made with: openssl genpkey -algorithm ed25519
-out key.pem. Exit status: 0 success, 2 invalid input.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/digits")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the release: new, empty, or the run's own release",
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="private key to sign the certificate with")
    parser.add_argument("--end-run", action="store_true", help="end an unfinished run for good")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.curriculum.train import export_run

        release = export_run(asked.run, asked.out, asked.sign, end_run=asked.end_run)
        print(
            f"release: {release}"
            if release
            else f"ended: {asked.run} has learnt nothing: no release is written"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
