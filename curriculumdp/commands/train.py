"""accelerate launch -m curriculumdp.commands.train CONFIG [key.path=value ...]: start or resume a run.

Run the same command again after a crash or a preemption. Exit status: 0 finished (now or earlier), 2 invalid input
(reported in one line), 143 stopped by SIGTERM with everything saved. Launchers replace it with their own: --exit-status
keeps it, and one process needs no launcher (launch/train.py CONFIG).
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, as_typed_here, exit_status_in, one_line_errors


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("config", help="a file from configs/, or your own")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override the file's settings")
    parser.add_argument(
        "--show-private-metrics", action="store_true", help="show losses on the console; certified as shown"
    )
    parser.add_argument("--exit-status", type=Path, metavar="FILE", help="also write the exit status to FILE")
    parser.add_argument(
        "--accept-recharge", action="store_true", help="charge steps again that this machine cannot replay"
    )
    asked = parser.parse_intermixed_args()

    with exit_status_in(asked.exit_status) as record, one_line_errors():
        from curriculumdp.curriculum.preemption import heed_signals

        heed_signals(record)
        from curriculumdp.config.config import load_config

        shown = ["logging.show_private_metrics=true"] if asked.show_private_metrics else []
        config = load_config(asked.config, [*asked.overrides, *shown])

        from curriculumdp.curriculum.train import run_curriculum
        from curriculumdp.world import open_world

        compute = config.compute
        with open_world(compute.device, compute.processes, compute.join_minutes) as world:
            outcome = run_curriculum(config, world, accept_recharge=asked.accept_recharge)
            world.print(as_typed_here(outcome.summary()))
        record(outcome.exit_code)
        return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
