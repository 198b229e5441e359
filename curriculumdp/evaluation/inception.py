"""FID's InceptionV3 as a feature network, with weights from a file of the user's. Nothing is downloaded.

The network is TensorFlow's graph of 2015-12-05, which Heusel et al. 2017 use, as ported to torch by pytorch-fid:
its parameter names, its resizing and its pools, including the last block's max pool that other InceptionV3 lack.
Weights come from

- the standard file, pt_inception-2015-12-05-6726825d.pth of pytorch-fid's releases, recognised by the SHA-256 of
  all its bytes. It is a pickle: no other bytes are unpickled, and only by torch's restricted loader;
- any safetensors file with its parameter names. To make one from the standard file, or from another:

      state = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
      safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, "inception.safetensors")

A distance is called FID under weights recognised as the standard ones, FD otherwise. A safetensors copy is
recognised by STANDARD_TENSORS, which is still empty: until it is filled, FID needs the .pth.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from curriculumdp.evaluation.classifiers import outputs_of
from curriculumdp.evaluation.fidelity import FeatureNetwork
from curriculumdp.evaluation.labelled import EvaluationError

SIDE = 299  # pixels
WIDTH = 2048
AT_ONCE = 32  # images: 0.2 GB in the widest layer
# The file's name has the first 8 digits; its size and all 64 digits are those that projects pinning this file use.
STANDARD_FILE = "pt_inception-2015-12-05-6726825d.pth"
STANDARD_FILE_BYTES = 95_628_359
STANDARD_FILE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# `tensors_sha256` of the standard weights, which identifies a safetensors copy of them. Empty, since computing it needs
# the file. An evaluation with the .pth records it as its network's sha256; put that here.
STANDARD_TENSORS: frozenset[str] = frozenset()


class Layer(NamedTuple):
    """A convolution and its norm; `kernel` is (height, width)."""

    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


THREE, FIVE, ROW, COLUMN = (3, 3), (5, 5), (1, 7), (7, 1)
CROSS = [Layer(384, (1, 3)), Layer(384, (3, 1))]


class _Conv(nn.Module):
    """ReLU(BN(conv(x))). Stride 1 keeps the size unless `same` is False; larger strides have no padding."""

    def __init__(self, inputs: int, layer: Layer, *, same: bool = True) -> None:
        super().__init__()
        height, width = layer.kernel
        padding = (height // 2, width // 2) if same and layer.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, layer.outputs, layer.kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Concatenated branches of layers, the last of which pools (and projects to `pooled` channels).

    A layer is named after its branch and its position in it, from 1. Two layers in a list, named a and b, get the
    same input, and their outputs are concatenated.
    """

    def __init__(
        self, inputs: int, pool: nn.Module, pooled: int | None, **branches: Sequence[Layer | list[Layer]]
    ) -> None:
        super().__init__()
        self.paths: list[list[list[str]]] = []
        for branch, layers in branches.items():
            width, path = inputs, []
            for number, item in enumerate(layers, 1):
                name = f"{branch}_{number}" if len(layers) > 1 else branch
                here = (
                    [(name, item)]
                    if isinstance(item, Layer)
                    else list(zip((name + "a", name + "b"), item, strict=True))
                )
                for each, layer in here:
                    self.add_module(each, _Conv(width, layer))
                width = sum(layer.outputs for _, layer in here)
                path.append([each for each, _ in here])
            self.paths.append(path)
        self.pool = pool
        self.branch_pool = nn.Identity() if pooled is None else _Conv(inputs, Layer(pooled))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            found.append(y)
        return torch.cat([*found, self.branch_pool(self.pool(x))], 1)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)


def _a(inputs: int, pooled: int) -> _Mixed:
    return _Mixed(
        *(inputs, _average(), pooled),
        branch1x1=[Layer(64)],
        branch5x5=[Layer(48), Layer(64, FIVE)],
        branch3x3dbl=[Layer(64), Layer(96, THREE), Layer(96, THREE)],
    )


def _b(inputs: int) -> _Mixed:
    return _Mixed(
        *(inputs, nn.MaxPool2d(3, 2), None),
        branch3x3=[Layer(384, THREE, 2)],
        branch3x3dbl=[Layer(64), Layer(96, THREE), Layer(96, THREE, 2)],
    )


def _c(inputs: int, inner: int) -> _Mixed:
    row, column = Layer(inner, ROW), Layer(inner, COLUMN)
    return _Mixed(
        *(inputs, _average(), 192),
        branch1x1=[Layer(192)],
        branch7x7=[Layer(inner), row, Layer(192, COLUMN)],
        branch7x7dbl=[Layer(inner), column, row, column, Layer(192, ROW)],
    )


def _d(inputs: int) -> _Mixed:
    return _Mixed(
        *(inputs, nn.MaxPool2d(3, 2), None),
        branch3x3=[Layer(192), Layer(320, THREE, 2)],
        branch7x7x3=[Layer(192), Layer(192, ROW), Layer(192, COLUMN), Layer(192, THREE, 2)],
    )


def _e(inputs: int, pool: nn.Module) -> _Mixed:
    return _Mixed(
        *(inputs, pool, 192),
        branch1x1=[Layer(320)],
        branch3x3=[Layer(384), CROSS],
        branch3x3dbl=[Layer(448), Layer(384, THREE), CROSS],
    )


class InceptionV3(nn.Sequential):
    """InceptionV3's last average pool, [N, 2048], for images float [N, 1 or 3, H, W] in [−1, 1], any H and W."""

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": _Conv(3, Layer(32, THREE, 2)),
            "Conv2d_2a_3x3": _Conv(32, Layer(32, THREE), same=False),
            "Conv2d_2b_3x3": _Conv(32, Layer(64, THREE)),
            "maxpool1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": _Conv(64, Layer(80)),
            "Conv2d_4a_3x3": _Conv(80, Layer(192, THREE), same=False),
            "maxpool2": nn.MaxPool2d(3, 2),
            "Mixed_5b": _a(192, 32),
            "Mixed_5c": _a(256, 64),
            "Mixed_5d": _a(288, 64),
            "Mixed_6a": _b(288),
            "Mixed_6b": _c(768, 128),
            "Mixed_6c": _c(768, 160),
            "Mixed_6d": _c(768, 160),
            "Mixed_6e": _c(768, 192),
            "Mixed_7a": _d(768),
            "Mixed_7b": _e(1280, _average()),
            "Mixed_7c": _e(2048, nn.MaxPool2d(3, 1, padding=1)),  # an accident of the graph that FID keeps
        }
        super().__init__(OrderedDict(layers))

    def forward(self, images: Tensor) -> Tensor:
        x = images.expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return super().forward(x).mean((2, 3))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes and float32 values, sorted by name, independent of the file format."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def given_inception(path: Path, device: torch.device) -> FeatureNetwork:
    """Return the network with the weights in `path`, its features unscaled. Raises EvaluationError, one line."""
    with torch.device("meta"):
        net = InceptionV3()
    counters = {name: torch.tensor(0) for name in net.state_dict() if name.endswith("num_batches_tracked")}
    shapes = {name: value.shape for name, value in net.state_dict().items() if name not in counters}
    if not path.is_file():
        raise EvaluationError(
            f"{path}: no such file: name Inception weights, .safetensors or {STANDARD_FILE}"
        )
    is_safetensors = path.suffix == ".safetensors"
    weights = _checked(path, shapes, (_safetensors if is_safetensors else _standard)(path))
    net.load_state_dict({**weights, **counters}, assign=True)
    net.to(device).eval()
    digest = tensors_sha256(weights)
    standard = not is_safetensors or digest in STANDARD_TENSORS
    trained_on = f"ImageNet, the standard weights of FID ({STANDARD_FILE})" if standard else "unknown images"

    def features(images: np.ndarray) -> np.ndarray:
        found = outputs_of(net, images, device, AT_ONCE)
        if not np.isfinite(found).all():
            raise EvaluationError(f"{path}: features overflow with these weights: name Inception's weights")
        return found

    return FeatureNetwork(
        f"InceptionV3, {WIDTH} features", trained_on, digest, features, "fid" if standard else "fd"
    )


def _standard(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the one pickle that is read; the bytes hashed are the bytes unpickled afterwards."""
    content = path.read_bytes() if path.stat().st_size == STANDARD_FILE_BYTES else b""
    if hashlib.sha256(content).hexdigest() != STANDARD_FILE_SHA256:
        raise EvaluationError(
            f"{path} is neither .safetensors nor the complete {STANDARD_FILE} (SHA-256 {STANDARD_FILE_SHA256[:8]}…): "
            "no other pickle is read"
        )
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise EvaluationError(f"{path} is truncated or not safetensors: {error}") from None


def _checked(
    path: Path, shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that the network uses, float32, without the classifier heads. Raises EvaluationError."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise EvaluationError(f"{path} is not an InceptionV3: it has no {name}")
        if tensors[name].shape != shape:
            raise EvaluationError(
                f"{path} is not an InceptionV3: {name} is {list(tensors[name].shape)}, not {list(shape)}"
            )
        if not (tensors[name].is_floating_point() and tensors[name].isfinite().all()):
            raise EvaluationError(
                f"{path}: {name} contains values that are not finite floating-point numbers"
            )
    return {name: tensors[name].float() for name in shapes}
