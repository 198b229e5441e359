"""curriculumdp-doctor from a checkout: curriculumdp/commands/doctor.py says what it does."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from curriculumdp.commands.doctor import main  # noqa: E402 - the path comes first

if __name__ == "__main__":
    sys.exit(main())
