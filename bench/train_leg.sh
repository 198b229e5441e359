#!/usr/bin/env bash
# bench/train_leg.sh CONFIG SECONDS CARRIED RESULTS [key.path=value ...]: train for SECONDS and leave the run in files.
#
# Goes on with the run whose files lie in the folder CARRIED, if any do; afterwards they are replaced by the run's state
# of now: run.tar.gz.aa, .ab, ..., of 15 MiB at most, to be joined by `cat run.tar.gz.* | tar xz`. The decoded images are
# left out. The files hold the run's secret: only for PUBLIC data. Appends the figures of run_figures.py to the folder
# RESULTS. Exit status: 0 trained or finished, 2 nothing could begin.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
config=$1 seconds=$2 carried=$3 results=$4
shift 4

where='import sys; from curriculumdp.config.config import load_config; print(load_config(sys.argv[1], sys.argv[2:]).run_dir)'
run=$(PYTHONPATH=.:kernels $python -c "$where" "$config" "$@") || exit 2
mkdir -p "$carried" "$run"
# A kill while files were replaced leaves both sets or the next one alone; only a complete one unpacks.
if [ ! -e "$run/private" ]; then
  for set in next run; do
    if compgen -G "$carried/$set.tar.gz.*" >/dev/null; then
      rm -rf "$run.partial" && mkdir -p "$run.partial"
      if cat "$carried/$set".tar.gz.* | tar xz -C "$run.partial"; then rm -rf "$run" && mv "$run.partial" "$run" && break; fi
    fi
  done
fi

# SIGTERM is how a run is asked to save and stop; it then exits 143. One process needs no launcher.
status=0
timeout --foreground --signal=TERM --kill-after=60 "$seconds" $python launch/train.py "$config" "$@" || status=$?
case $status in 0 | 124 | 143) ;; *) exit 2 ;; esac

rm -f "$carried"/next.tar.gz.*  # parts of a set that a kill left would follow those of a shorter one
tar cz -C "$run" --exclude=./private/cache . | split -b 15m - "$carried/next.tar.gz."
rm -f "$carried"/run.tar.gz.*
for part in "$carried"/next.tar.gz.*; do mv "$part" "$carried/run.tar.gz.${part##*.}"; done
ls -l "$carried"
$python bench/run_figures.py "$config" --out "$results" "$@"
