"""curriculumdp-export RUN --out DIR [--sign KEY] [--end-run]: write a run's release to a folder that may leave.

An unfinished run is exported only with --end-run, which ends it for good once its release is written: it cannot be
resumed, what it spent stays spent, and its certificate states stopped: operator. KEY is an Ed25519 private key in PEM,
made with: openssl genpkey -algorithm ed25519 -out key.pem. The release is uploaded only with --push-to-hub.
Exit status: 0 success, 2 invalid input.
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
    parser.add_argument("--license", metavar="ID", help="licence that the card states, such as apache-2.0")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload it, to a private repository if new")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        if asked.push_to_hub is not None:
            from curriculumdp.release.hub import push, require_repo

            require_repo(asked.push_to_hub)

        from curriculumdp.curriculum.ending import ending
        from curriculumdp.curriculum.train import export_run
        from curriculumdp.release.files import ALLOWED

        release = export_run(asked.run, asked.out, asked.sign, end_run=asked.end_run, license_=asked.license)
        print(f"release: {release}" if release else "release: none, since the run has learnt nothing yet")
        for line in ending(asked.run):
            print(line)
        if release and asked.push_to_hub is not None:
            print(f"uploaded: {push(release, asked.push_to_hub, 'model', sorted(ALLOWED))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
