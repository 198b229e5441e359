"""Examples of `chacha`."""

from typing import Any

import torch

from dpkernels.chacha import key_words, keystream, keystream_reference
from dpkernels.examples import Call, Outputs, Shape


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    return {"key": bytes(range(32)), "blocks": s["blocks"], "first": s["first"], "device": device}


def call(key: bytes, blocks: int, first: int, device: str) -> Call:
    written: Outputs = {}
    return Call(lambda: written.update(words=keystream(key, blocks, first, device)), lambda: written)


def truth(key: bytes, blocks: int, first: int, device: str) -> Outputs:
    return {"words": keystream_reference(key_words(key, device), blocks, first)}
