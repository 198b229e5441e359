"""python launch/plan.py CONFIG [key.path=value ...] [--json | --explain | --estimate]: what a run costs, beforehand.

Solves DP-SGD's noise for the budget, all phases together. Reads no data and imports no torch. Exit status: 0
done, 2 a bad input.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def main() -> int:
    from curriculumdp.command import Parser, one_line_errors

    parser = Parser(__doc__)
    parser.add_argument("config", help="a file of configs/, or your own")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace the file's settings")
    parser.add_argument("--json", action="store_true", help="the plan as JSON, for programs")
    parser.add_argument("--explain", action="store_true", help="only how a GPU of 80 GiB does each layer")
    parser.add_argument("--estimate", action="store_true", help="also seconds a step, memory, hours, here")
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.config.config import load_config
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
