#!/usr/bin/env bash
# bench/measure_gpu.sh [MINUTES [CONFIG]]: what only a GPU can show, from a checkout whose environment is ready (make
# test). In order: the gpu tests, every kernel (kernels.csv), the whole step by every way (step_cuda.csv and .png),
# where its time goes (profile_cuda_ours-graph.txt), then MINUTES (default 20) of a training, by default of
# configs/fashion_mnist_eps10.yaml, and its GPU-hours and seconds per step (runs_cuda.csv). The same command goes on
# with the training where it stopped; once that is complete, its release is evaluated on the held-out images, with the
# WRN, and reported on (figures in runs_cuda.csv, NAME_utility.png). All results go to bench/results/: CONFIG's data
# must be public. What fails does not stop the rest; the exit status is then 1, or 2 where nothing could begin.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-20}
config=${2:-configs/fashion_mnist_eps10.yaml}
python=.venv/bin/python

# The run's folder, and how evaluate.py names its held-out images; or a line that says what is missing.
checked=$($python bench/run_figures.py "$config" --check) || exit 2
read -r run real <<<"$checked"

failed=0
$python -m pytest -m gpu tests || failed=1
$python bench/bench_kernels.py || failed=1
$python bench/bench_step.py --plot bench/results/step_cuda.png || failed=1
$python bench/profile_step.py || failed=1

# SIGTERM is how a run is asked to save and stop; it then exits 143.
status=0
timeout --signal=TERM "$((minutes * 60))" \
  .venv/bin/accelerate launch --config_file configs/accelerate/one_gpu.yaml \
  launch/train.py "$config" || status=$?
case $status in 0 | 124 | 143) ;; *) failed=1 ;; esac

# A complete training has written its release itself: that is its export.
if [ -d "$run/release" ]; then
  if [ -z "$real" ]; then
    echo "$config: its source holds no test images: evaluate $run/release by launch/evaluate.py"
  elif [ ! -e "$run/evaluation" ]; then
    $python launch/evaluate.py "$run/release" --real "$real" --public-real --num 60000 --seeds 1 || failed=1
  fi
  $python launch/report.py "$run" || failed=1
fi
$python bench/run_figures.py "$config" || failed=1
exit $failed
