"""One thread a test process: the suite shares two cores, and bits depend on the thread count."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
