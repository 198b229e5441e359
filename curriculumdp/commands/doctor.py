"""curriculumdp-doctor CONFIG [key.path=value ...]: check what would otherwise fail late, on this machine.

It reads the data as training will, tries the real network on dummy images, charges nothing and writes nothing in the
run's folder. One line per check: ok, warning, FAILED with what to do, or skipped. Exit status: 0 nothing failed, 2
something did, or invalid input.
"""

import sys

from curriculumdp.command import BAD_INPUT, Parser, as_typed_here, one_line_errors
from curriculumdp.printable import printable


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("config", help="a file from configs/, or your own")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override the file's settings")
    parser.add_argument(
        "--show-private-metrics", action="store_true", help="count images, units and classes on the console"
    )
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.config.config import load_config

        config = load_config(asked.config, asked.overrides)

        from curriculumdp.curriculum.doctor import examine

        failed = False
        for finding in examine(config, asked.show_private_metrics):
            failed |= finding.status == "FAILED"
            print(f"{finding.status:8}{printable(as_typed_here(finding.line))}", flush=True)
    return BAD_INPUT if failed else 0


if __name__ == "__main__":
    sys.exit(main())
