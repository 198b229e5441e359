"""The given Inception is FID's network; its distance is called FID under the standard weights alone."""

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from curriculumdp.evaluation import inception
from curriculumdp.evaluation.evaluate import Request, evaluate_release
from curriculumdp.evaluation.inception import InceptionV3, given_inception, tensors_sha256
from curriculumdp.evaluation.labelled import EvaluationError
from curriculumdp.evaluation.record import public_folder, table
from curriculumdp.evaluation.released import read_released
from curriculumdp.report.compare import read_run
from curriculumdp.report.compare import table as comparison
from curriculumdp.report.quality import fidelity_section, memorisation_section
from tests.support.evaluated_run import CLASSES, digits, write_npz

CPU = torch.device("cpu")
# Of the lines "name (shape)" of all that the official file holds but fc, in the order of names.
NAMES_AND_SHAPES = "1fc0c3b87e62e2f6cabc378086838c0c8cb0882fc1317c76a2612833615a0f57"
# Features of `picture()`, in colour and its first channel alone, that pytorch-fid's own code gave with `made_up()`
# (with torchvision 0.21's blocks); two images each, a column for each branch of the last block.
COLUMNS = [1, 496, 822, 1450, 1742, 1890]
COLOUR = [
    [934.706, 1266.585, 1153.331, 1736.982, 1249.192, 1268.952],
    [920.144, 1266.383, 1147.987, 1750.018, 1236.618, 1274.838],
]
GREY = [
    [1048.367, 1428.142, 1299.528, 1991.82, 1432.319, 1440.42],
    [1052.857, 1438.254, 1304.165, 1998.678, 1424.436, 1433.415],
]


def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    return {name: tuple(v.shape) for name, v in state.items() if not name.endswith("num_batches_tracked")}


def made_up() -> dict[str, Tensor]:
    """Weights under which activations neither die nor overflow."""
    draw, weights = np.random.default_rng(0), {}
    for name, shape in sorted(shapes().items()):
        value = draw.standard_normal(shape, dtype=np.float32)
        if name.endswith("conv.weight"):
            value *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        else:
            positive = name.endswith(("bn.weight", "running_var"))
            value = 1 + np.abs(value) / 2 if positive else value / 5
        weights[name] = torch.from_numpy(value)
    return weights


def picture() -> np.ndarray:
    return (np.arange(2 * 3 * 40 * 24).reshape(2, 3, 40, 24) * 37 % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return made_up()


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights of nowhere, with what the official file has beside them."""
    path = tmp_path_factory.mktemp("inception") / "weights-of-nowhere.safetensors"
    save_file({**weights, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    yield path
    shutil.rmtree(path.parent)  # 90 MB


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that the network takes, 16 times faster."""
    monkeypatch.setattr(inception, "SIDE", 75)


def test_names_and_shapes_are_those_of_the_official_file() -> None:
    with torch.device("meta"):
        net = InceptionV3()
    assert sum(isinstance(part, nn.Conv2d) for part in net.modules()) == 94
    assert sum(parameter.numel() for parameter in net.parameters()) == 21_785_568
    assert sum(np.prod(shape) for name, shape in shapes().items() if "running" in name) == 34_432
    lines = "".join(f"{name} {shape}\n" for name, shape in sorted(shapes().items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == NAMES_AND_SHAPES


def test_features_are_those_of_pytorch_fid(file: Path) -> None:
    network = given_inception(file, CPU)
    both = network.features(picture())
    assert both.shape == (2, 2048)
    assert both[:, COLUMNS] == pytest.approx(np.array(COLOUR), rel=1e-4)
    assert network.features(picture()[:, :1])[:, COLUMNS] == pytest.approx(np.array(GREY), rel=1e-4)


def evaluated(
    run: Path, folder: Path, file: Path, **options: Any
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    place = Path(shutil.copytree(run, folder / "tiny"))
    real = write_npz(folder / "real.npz", digits("test", CLASSES).at_most(12))
    request = Request(real, 12, 2, ("logistic",), CPU, public_real=True, inception=file, **options)
    return place, *evaluate_release(read_released(place / "release"), request, place, lambda text: None)


@pytest.mark.usefixtures("small")
def test_given_weights_that_nobody_knows_are_named_and_never_called_fid(
    run: Path, tmp_path: Path, file: Path, weights: dict[str, Tensor]
) -> None:
    train = write_npz(tmp_path / "train.npz", digits("train", CLASSES).at_most(15))
    place, public, private = evaluated(run, tmp_path, file, train=train)
    written = (public_folder(place) / "evaluation.json").read_text()
    found = json.loads(written)["fidelity"]
    assert set(found) == {"network", "compared_with", "fd", "kid", "precision", "recall"}
    assert found["network"]["name"] == "InceptionV3, 2048 features"
    assert found["network"]["sha256"] == tensors_sha256(weights)
    assert found["compared_with"] == 12  # the whole real set: no half of it trains a network
    assert len(found["fd"]["values"]) == 2
    assert found["fd"]["mean"] > 0
    assert file.stem not in written
    said = table(public, private)
    assert (
        f"InceptionV3, 2048 features trained on unknown images, sha256 {tensors_sha256(weights)[:12]}" in said
    )
    assert comparison([read_run(place)])[0][-3] == "FD"
    both = {**private, **public}
    page = re.sub(r'src="data:[^"]*"', "", str(memorisation_section(both, place / "private" / "evaluation")))
    for text in (said, written, page):
        assert "fid" not in text.replace("fidelity", "").lower()
    assert "not FID" in str(fidelity_section(both))


@pytest.mark.usefixtures("small")
def test_the_standard_weights_give_fid_however_a_file_holds_them(
    run: Path, tmp_path: Path, file: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "STANDARD_TENSORS", frozenset({tensors_sha256(weights)}))
    place, public, private = evaluated(run, tmp_path, file)
    assert "fid" in public["fidelity"]
    assert "fd" not in public["fidelity"]
    assert "standard weights of FID" in public["fidelity"]["network"]["trained_on"]
    assert "  FID  " in table(public, private)
    found = read_run(place)
    assert found.fd == public["fidelity"]["fid"]["mean"]
    assert comparison([found])[0][-3] == "FID"
    page = str(fidelity_section(public))
    assert ">FID</" in page
    assert "not FID" not in page


@pytest.mark.parametrize("zipped", [True, False])
def test_the_standard_file_is_known_by_all_its_bytes(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    """The official file is from before torch's zip format."""
    path = tmp_path / inception.STANDARD_FILE
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    monkeypatch.setattr(inception, "STANDARD_FILE_BYTES", len(content))
    with pytest.raises(
        EvaluationError, match=r"neither \.safetensors nor the complete pt_inception.* \(SHA-256 6726825d…\)"
    ):
        given_inception(path, CPU)
    monkeypatch.setattr(inception, "STANDARD_FILE_SHA256", hashlib.sha256(content).hexdigest())
    network = given_inception(path, CPU)
    assert network.distance == "fid"
    assert network.sha256 == tensors_sha256(weights)
    path.write_bytes(content[:-1])
    with pytest.raises(EvaluationError, match="complete"):
        given_inception(path, CPU)
    path.unlink()


class Opens:
    """Unpickled, it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("name", [inception.STANDARD_FILE, "inception.pkl", "inception.safetensors"])
def test_no_other_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, mark = tmp_path / name, tmp_path / "mark"
    path.write_bytes(pickle.dumps(Opens(mark)))
    monkeypatch.setattr(inception, "STANDARD_FILE_BYTES", path.stat().st_size)
    with pytest.raises(EvaluationError, match=r"no other pickle is read|not safetensors"):
        given_inception(path, CPU)
    assert not mark.exists()


def first(change: Tensor) -> dict[str, Tensor]:
    return {
        **{name: torch.zeros(shape) for name, shape in shapes().items()},
        "Conv2d_1a_3x3.conv.weight": change,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "truncated or not safetensors"),
        (b"no weights", "truncated or not safetensors"),
        ({"weight": torch.zeros(3)}, r"is not an InceptionV3: it has no Conv2d_1a_3x3\.conv\.weight"),
        (lambda: first(torch.zeros(32, 3, 5, 5)), r"weight is \[32, 3, 5, 5\], not \[32, 3, 3, 3\]"),
        (lambda: first(torch.zeros(32, 3, 3, 3, dtype=torch.int64)), "not finite floating-point numbers"),
        (lambda: first(torch.full((32, 3, 3, 3), torch.nan)), "not finite floating-point numbers"),
    ],
    ids=["missing", "empty", "text", "another network", "another shape", "integers", "not finite"],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "wrong.safetensors"
    content = content() if callable(content) else content
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message) as refused:
        given_inception(path, CPU)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    path.unlink(missing_ok=True)


def test_a_truncated_file_is_refused(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(EvaluationError, match="truncated or not safetensors"):
        given_inception(path, CPU)
    path.unlink()


@pytest.mark.usefixtures("small")
def test_weights_under_which_features_overflow_are_refused(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / "huge.safetensors"
    save_file({name: v * 1e3 if name.endswith("conv.weight") else v for name, v in weights.items()}, path)
    with pytest.raises(EvaluationError, match="features overflow"):
        given_inception(path, CPU).features(picture())
    path.unlink()


def test_given_weights_leave_no_network_to_train(run: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no feature network is trained: do not name a set for one"):
        evaluated(run, tmp_path, tmp_path / "any", features="digits")
