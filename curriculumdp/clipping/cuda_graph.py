"""A function of fixed shapes as one CUDA graph: captured on static buffers, replayed on whatever is copied in."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Body = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# Kernels are compiled and libraries choose their algorithms before the capture, which allows neither.
WARM_UPS = 3


class Static:
    """Buffers that stay where they are while what they hold changes."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in like.items()}

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Overwrites every buffer; raises ValueError unless names, shapes and dtypes are those of the first time.

        copy_ would stretch one row over a whole buffer without a word.
        """
        for name, buffer in self.tensors.items():
            value = values[name]
            if value.shape != buffer.shape or value.dtype != buffer.dtype:
                raise ValueError(
                    f"{name} is {value.dtype} {tuple(value.shape)}; what was captured is "
                    f"{buffer.dtype} {tuple(buffer.shape)}"
                )
            buffer.copy_(value, non_blocking=True)


class Captured:
    """`body` as a CUDA graph. Calling it copies the inputs in, replays, and returns copies of the outputs.

    body maps named tensors to named tensors, looks at no value from the host, and may change tensors that stay in
    place; the warm-up calls change them too. Raises whatever CUDA says of a body that cannot be captured.
    """

    def __init__(self, body: Body, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = Static(inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                body(self._inputs.tensors)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (a collective's watchdog) may use CUDA meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = body(self._inputs.tensors)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._inputs.take(inputs)
        self._graph.replay()
        return {name: output.clone() for name, output in self._outputs.items()}
