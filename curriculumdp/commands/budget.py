"""curriculumdp-budget CONFIG [key.path=value ...] [--create]: the shared budget of all runs on a data set.

Lists the runs on the data set that CONFIG names, and what is left. --create creates its ledger: once, before the first
run with data.budget, which does not create it itself. Exit status: 0 success, 2 invalid input.
"""

import sys

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("config", help="a file from configs/, or your own, with data.name set")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override the file's settings")
    parser.add_argument("--create", action="store_true", help="create the ledger of a data set without runs")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.config.config import load_config
        from curriculumdp.curriculum.dataset import create, described

        config = load_config(asked.config, asked.overrides)
        print(create(config) if asked.create else described(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
