"""curriculumdp-verify RELEASE [--signer PUB]: check a release against its own certificate.

Recomputes ε from the certificate's events with two libraries and checks every file's hash and the signature.
Exit status: 0 the release is valid, 1 it is not (one line per problem), 2 invalid input.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("release", type=Path, help="a release folder, or the run's folder that holds it")
    parser.add_argument(
        "--signer", type=Path, metavar="PUB", help="Ed25519 public key (PEM) that must have signed it"
    )
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.printable import printable
        from curriculumdp.release.files import release_of
        from curriculumdp.release.verify import check_release, failure, summary

        release = release_of(asked.release)
        checked = check_release(release, asked.signer)
        if checked.certificate is None or checked.recomputed is None or checked.problems:
            lines = failure(release, checked.problems)
        else:
            lines = summary(release, checked.certificate, checked.recomputed, asked.signer)
        for line in lines:
            print(printable(line))
        return int(bool(checked.problems))


if __name__ == "__main__":
    sys.exit(main())
