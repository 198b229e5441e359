"""One thread a test process: the suite shares two cores, and bits depend on the thread count.

Triton reads TRITON_INTERPRET once, when it is first imported, so it is set here, before any test is collected.
"""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
