"""curriculumdp-compare RUN...: compare runs side by side: ε, accuracy, FD, hours.

The metrics come from launch/evaluate.py. Runs that differ only in name and seed are also summarised by mean and spread.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write compare.csv, .json and .png here")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.report.compare import (
            read_run,
            remarks,
            require_place,
            table,
            text_of,
            write_comparison,
        )

        if asked.out:
            require_place(asked.out)
        runs = [read_run(run) for run in asked.runs]
        print(text_of(table(runs)))
        for line in remarks(runs):
            print(line)
        for path in write_comparison(runs, asked.out) if asked.out else []:
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
