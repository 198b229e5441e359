"""curriculumdp-plan CONFIG [key.path=value ...] [--json | --explain | --estimate]: what a run will cost.

Solves DP-SGD's noise for the budget of all phases together. Reads no data; imports torch only for --explain and
--estimate. Exit status: 0 success, 2 invalid input.
"""

import json
import sys

from curriculumdp.command import Parser, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("config", help="a file from configs/, or your own")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override the file's settings")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--explain", action="store_true", help="only how an 80 GiB GPU computes each layer")
    parser.add_argument(
        "--estimate", action="store_true", help="also time per step, memory, time of all, here"
    )
    asked = parser.parse_intermixed_args()

    with one_line_errors():
        from curriculumdp.config.config import load_config
        from curriculumdp.curriculum.plan import described, noise_figures, plan_curriculum, signal_line

        config = load_config(asked.config, asked.overrides)
        if asked.explain:
            from curriculumdp.curriculum.engine import explained

            print(explained(config))
            return 0
        plan = plan_curriculum(config)
        print(json.dumps(plan.figures(), indent=2) if asked.json else described(plan), flush=True)
        if line := signal_line(config):
            print(line, file=sys.stderr if asked.json else sys.stdout)
        noise = noise_figures(config, plan)
        if not asked.json:
            print(noise.line())
        for line in noise.warnings():
            print(f"warning: {line}", file=sys.stderr)
        if asked.estimate:
            from curriculumdp.curriculum.estimate import estimate

            said = estimate(config, plan, lambda text: print(text, file=sys.stderr, flush=True))
            print(said, file=sys.stderr if asked.json else sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
