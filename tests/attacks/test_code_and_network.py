"""Nothing that is read runs code, and nothing is asked of a network, in whole runs and with what an attacker plants."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curriculumdp.config.config import load_config
from curriculumdp.curriculum.train import export_run, run_curriculum
from curriculumdp.diffusion.networks import build_unet, load_public_weights
from curriculumdp.release.sample import sample_release
from curriculumdp.release.verify import verify_release
from curriculumdp.world import one_process
from tests.support.refusal import refusal_of
from tests.support.runs import finish, in_child
from tests.support.small_run import small
from tests.support.tiny_release import write_keys, write_release
from tests.support.tried import TRIED

# What Python tells (PEP 578) of name look-ups and connections, by whatever library.
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
UNPICKLING = ("pickle.find_class",)


class Loaded:
    """Unpickled, it opens the file `mark` for writing, hence makes it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


def plant_in_checkpoint(tmp_path: Path, data: Path, mark: Path) -> None:
    """The run goes on from the checkpoint before, and says which it passed over."""
    from curriculumdp.ledger.run_ledger import Ledger
    from tests.support.runs import kill_at

    def killed() -> None:
        kill_at(Ledger, "charge", 5)
        finish(small(tmp_path / "run", data))

    assert in_child(killed) < 0
    for checkpoint in (tmp_path / "run" / "private" / "checkpoints").iterdir():
        torch.save({"weights": Loaded(mark)}, checkpoint / "state.safetensors")
        (checkpoint / "state.bin").write_bytes(pickle.dumps(Loaded(mark)))
    finish(small(tmp_path / "run", data))


def plant_in_npz(tmp_path: Path, data: Path, mark: Path) -> None:
    for name in ("images", "labels", "units"):
        arrays = dict(np.load(data)) | {name: np.array([Loaded(mark)] * 300, dtype=object)}
        np.savez(tmp_path / "data.npz", **arrays)
        assert "pickled" in str(refusal_of(lambda: finish(small(tmp_path / "run", tmp_path / "data.npz"))))
    (tmp_path / "data.npz").write_bytes(pickle.dumps(Loaded(mark)))
    assert refusal_of(lambda: finish(small(tmp_path / "run", tmp_path / "data.npz")))


def plant_in_cache(tmp_path: Path, data: Path, mark: Path) -> None:
    """Decoded images that were exchanged count as absent."""
    cache = tmp_path / "run" / "private" / "cache"
    cache.mkdir(parents=True)
    np.savez(cache / "images-train.npz", key=np.array([Loaded(mark)]), images=np.array([Loaded(mark)]))
    finish(small(tmp_path / "run", data))


def plant_in_public_model(tmp_path: Path, data: Path, mark: Path) -> None:
    net = build_unet((8,), 8, 1, 3, True, blocks=1)
    net.save_config(tmp_path / "public")
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.safetensors"):
        torch.save({"weights": Loaded(mark)}, tmp_path / "public" / name)
    config = small(tmp_path / "run", data, init_from=str(tmp_path / "public"))
    assert "safetensors" in str(refusal_of(lambda: finish(config)))
    torch.save({"w": Loaded(mark)}, tmp_path / "public" / "diffusion_pytorch_model.safetensors")
    assert "safetensors" in str(refusal_of(lambda: load_public_weights(net, tmp_path / "public")))


def plant_in_release(tmp_path: Path, data: Path, mark: Path) -> None:
    release = write_release(tmp_path / "release")
    weights = release / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({"weights": Loaded(mark)}, release / "unet" / "diffusion_pytorch_model.bin")
    assert any("does not belong" in line for line in verify_release(release))
    weights.unlink()
    assert refusal_of(lambda: sample_release(release, 2, tmp_path / "out"))
    torch.save({"weights": Loaded(mark)}, weights)
    assert any("safetensors" in line for line in verify_release(release))
    assert refusal_of(lambda: sample_release(release, 2, tmp_path / "out"))


def plant_in_yaml(tmp_path: Path, data: Path, mark: Path) -> None:
    code = f"!!python/object/apply:builtins.open ['{mark}', 'w']"
    (tmp_path / "config.yaml").write_text(f"name: {code}\n")
    assert "config.yaml" in str(refusal_of(lambda: load_config(tmp_path / "config.yaml")))
    whole = tmp_path / "whole.yaml"
    whole.write_text("name: a\n")
    assert "override" in str(refusal_of(lambda: load_config(whole, [f"seed={code}"])))
    release = write_release(tmp_path / "release")
    (release / "training_config.yaml").write_text(f"data: {code}\n")
    assert any("training_config.yaml" in line for line in verify_release(release))


PLANTS = (
    plant_in_checkpoint,
    plant_in_npz,
    plant_in_cache,
    plant_in_public_model,
    plant_in_release,
    plant_in_yaml,
)


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_code_is_never_run(
    tmp_path: Path, data: Path, mark: Path, plant: Callable[[Path, Path, Path], None]
) -> None:
    plant(tmp_path, data, mark)
    assert not mark.exists()
    TRIED["attacks planted pickles and code"] += 1


def test_the_plant_itself_would_run(mark: Path) -> None:
    pickle.loads(pickle.dumps(Loaded(mark))).close()
    assert mark.exists()


def test_a_whole_run_opens_no_connection_and_unpickles_nothing(tmp_path: Path, data: Path) -> None:
    """Training, preemption, export with a signature, verification and sampling, in a child that tells of either."""
    private, public = write_keys(tmp_path, "ours")

    def work() -> None:
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = False  # the tests set it; a user may not
        told = []

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in UNPICKLING or (event in NETWORK and not _is_local(arguments)):
                told.append(f"{event} {arguments}")

        sys.addaudithook(hook)
        finish(small(tmp_path / "run", data))
        run_curriculum(small(tmp_path / "run", data), one_process())
        out = export_run(tmp_path / "run", tmp_path / "out", private)
        problems = verify_release(out, public)
        assert all("noise is solved" in problem for problem in problems), problems  # here none was
        sample_release(out, 4, tmp_path / "samples", png=True, grid=tmp_path / "grid.png")
        assert not told, told

    assert in_child(work) == 0


def _is_local(arguments: tuple[Any, ...]) -> bool:
    """True for a connection of this machine with itself."""
    address = arguments[1] if len(arguments) > 1 else None
    return isinstance(address, str | bytes) or (
        isinstance(address, tuple) and str(address[0]).startswith("127.")
    )
