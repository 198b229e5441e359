"""A fixed-shape function as one CUDA graph: captured on static buffers, replayed on whatever is copied in."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Body = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# Kernels must be compiled and library algorithms chosen before capture, which allows neither.
WARM_UPS = 3


class Static:
    """Buffers with fixed addresses and changing contents."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in like.items()}

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite every buffer. Raise ValueError unless shapes and dtypes are those of the buffers.

        Without the check, copy_ would silently broadcast one row over a whole buffer.
        """
        for name, buffer in self.tensors.items():
            value = values[name]
            if value.shape != buffer.shape or value.dtype != buffer.dtype:
                raise ValueError(
                    f"{name} is {value.dtype} {tuple(value.shape)}, but the graph was captured with "
                    f"{buffer.dtype} {tuple(buffer.shape)}"
                )
            buffer.copy_(value, non_blocking=True)


class Captured:
    """`body` as a CUDA graph. A call copies the inputs in, replays the graph and returns copies of the outputs.

    `body` maps named tensors to named tensors and reads no value on the host. It may update tensors that keep their
    address; the warm-up calls update them too. It lives as long as the graph, which reads the memory of all that it
    holds. Raises CUDA's own error if `body` cannot be captured.
    """

    def __init__(self, body: Body, inputs: Mapping[str, Tensor]) -> None:
        self._body, self._inputs = body, Static(inputs)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UPS):
                body(self._inputs.tensors)
        torch.cuda.current_stream().wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (a collective's watchdog) may use CUDA during the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = body(self._inputs.tensors)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._inputs.take(inputs)
        self._graph.replay()
        return {name: output.clone() for name, output in self._outputs.items()}
