"""curriculumdp-audit CONFIG [key.path=value ...]: attack the real training code, and bound ε from below.

Membership inference on the DP-SGD phase with canaries, in one run and in many, with its noise and without. The bounds
supplement the certificate and are never its proof. Reads none of your images unless --with-data is given. Runs on the
CPU; writes RUN_DIR/audit/. Exit status: 0 success, 1 a bound lies above the certificate's ε, 2 invalid input.
"""

import sys
from pathlib import Path

from curriculumdp.command import Parser, one_line_errors

QUICK, LONG = (500, 100, 20), (1000, 400, 40)  # canaries, runs, steps
ON_CPU = ["compute.device=cpu", "compute.precision=fp32"]


def main() -> int:
    """Run the command and return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("config", help="a file from configs/, or your own")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override the file's settings")
    parser.add_argument("--long", action="store_true", help="{} canaries, {} runs, {} steps".format(*LONG))
    parser.add_argument("--canaries", type=int, help=f"in the one run (default {QUICK[0]}; 0: skip it)")
    parser.add_argument("--runs", type=int, help=f"of the many runs (default {QUICK[1]}; 0: skip them)")
    parser.add_argument("--steps", type=int, help=f"steps per run, at the same ε (default {QUICK[2]})")
    parser.add_argument("--with-data", action="store_true", help="the one run trains on your images: PRIVATE")
    parser.add_argument("--out", type=Path, help="folder for audit/ (default: the config's run_dir)")
    asked = parser.parse_intermixed_args()
    usual = LONG if asked.long else QUICK
    given = (asked.canaries, asked.runs, asked.steps)
    canaries, runs, steps = (u if g is None else g for g, u in zip(given, usual, strict=True))

    with one_line_errors():
        from curriculumdp.config.config import load_config

        config = load_config(asked.config, [*asked.overrides, f"private.steps={steps}", *ON_CPU])

        from curriculumdp.audit.audit import Request, audit, audit_folder, exceeded, write_audit
        from curriculumdp.curriculum.audited import audited_run

        out = asked.out or Path(config.run_dir)
        audit_folder(out, asked.with_data)  # refused before the work
        request = Request(canaries, runs, with_data=asked.with_data)
        run = audited_run(config, asked.with_data)
        record = audit(run, request, lambda text: print(text, file=sys.stderr, flush=True))
        print("\n".join([*record["in_words"], record["what"], record["privacy"]]))
        print(f"written: {write_audit(record, out)}")
    return int(exceeded(record))


if __name__ == "__main__":
    sys.exit(main())
