"""Kernels run in Triton's interpreter where there is no GPU (tests/conftest.py sees to that)."""

from collections.abc import Iterator

import pytest
import torch

from dpkernels import device


@pytest.fixture
def interpreter() -> Iterator[None]:
    """CPU tensors take the Triton kernels within the test."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand: the gpu tests run the kernels themselves")
    with device.interpreted():
        yield
