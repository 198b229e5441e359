"""Kernels run in Triton's interpreter where there is no GPU.

Triton reads TRITON_INTERPRET once, when it is first imported: so tests/conftest.py has to set it, and this
file only catches a run of this folder alone.
"""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from dpkernels import device


@pytest.fixture
def interpreter() -> Iterator[None]:
    """CPU tensors take the Triton kernels within the test."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand: the gpu tests run the kernels themselves")
    with device.interpreted():
        yield
