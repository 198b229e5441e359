"""python launch/plan.py CONFIG [key.path=value ...] [--json | --explain | --estimate]: what a run costs, beforehand.

Solves DP-SGD's noise for the budget, both stages together. Reads no data and imports no torch. Exit status: 0
done, 2 a bad input.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


class Parser(argparse.ArgumentParser):
    """One line for a bad command, as for any other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a file of configs/, or your own")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace the file's settings")
    parser.add_argument("--json", action="store_true", help="the plan as JSON, for programs")
    parser.add_argument("--explain", action="store_true", help="only how a GPU of 80 GiB does each layer")
    parser.add_argument("--estimate", action="store_true", help="also seconds a step, memory, hours, here")
    asked = parser.parse_intermixed_args()

    from curriculumdp.command import one_line_errors

    with one_line_errors():
        from curriculumdp.config import load_config
        from curriculumdp.curriculum.plan import described, plan_curriculum

        config = load_config(asked.config, asked.overrides)
        if asked.explain:
            from curriculumdp.curriculum.engine import explained

            print(explained(config))
            return 0
        plan = plan_curriculum(config)
        print(json.dumps(plan.figures(), indent=2) if asked.json else described(plan))
        if asked.estimate:
            from curriculumdp.curriculum.estimate import estimate

            print(estimate(config, plan), file=sys.stderr if asked.json else sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
