#!/usr/bin/env bash
# bench/measure_gpu.sh [MINUTES]: all that only a GPU can show, from a checkout whose environment is ready (make test):
# the gpu tests, the kernels, the whole step, then MINUTES (default 20) of the Fashion-MNIST recipe, in runs/. The same
# command goes on with the training where it stopped. Results are lines in bench/results/*.csv.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-20}
python=.venv/bin/python

$python -c 'import torch; assert torch.cuda.is_available(), "no CUDA GPU"'
failed=0
$python -m pytest -m gpu tests || failed=1
$python bench/bench_kernels.py || failed=1
$python bench/bench_step.py || failed=1

# SIGTERM is how a run is asked to save and stop; it then exits 143.
status=0
timeout --signal=TERM "$((minutes * 60))" \
  .venv/bin/accelerate launch --config_file configs/accelerate/one_gpu.yaml \
  launch/train.py configs/fashion_mnist_eps10.yaml || status=$?
case $status in 0 | 124 | 143) ;; *) failed=1 ;; esac
exit $failed
