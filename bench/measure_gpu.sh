#!/usr/bin/env bash
# bench/measure_gpu.sh [options of measure_gpu.py]: what only a GPU can show, in legs of less than two minutes each.
# PYTHON names the interpreter; by default it is .venv/bin/python where make test has set one up, else python3.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; } || PYTHON=python3
export PYTHON
exec "$PYTHON" -u bench/measure_gpu.py "$@"
