"""One thread a test process: the suite shares two cores, and bits depend on the thread count.

torch reads OMP_NUM_THREADS, and Triton TRITON_INTERPRET, when first imported: so they are set here, before any test
is collected.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
