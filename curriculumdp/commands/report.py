"""curriculumdp-report RUN: report a run as self-contained HTML.

Writes RUN/report_public.html (only what is differentially private) and RUN/private/report.html (everything; it may
not leave). They include metrics of launch/evaluate.py if it ran before.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/NAME")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.report.report import write_reports

        for path in write_reports(asked.run):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
