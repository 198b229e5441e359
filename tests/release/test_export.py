"""What leaves: a folder that stock diffusers loads, of allowed files only, with a true certificate."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from curriculumdp.diffusion.pipeline import load_pipeline
from curriculumdp.diffusion.sample import SamplingError, denoise
from curriculumdp.release import export
from curriculumdp.release.certificate import CertificateError, CertifiedEvent
from curriculumdp.release.export import ExportError, SampleSettings, certified_events
from curriculumdp.release.files import ALLOWED, REQUIRED
from curriculumdp.release.signature import SignatureError
from curriculumdp.release.verify import verify_release
from tests.support.tiny_release import CONFIG, EVENTS, guarantee, write_keys, write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("run") / "release")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Only what a receiver has: any import of this project's packages fails.
PLAIN_DIFFUSERS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("curriculumdp", "dpkernels"):
            raise ImportError("no code of the project here: " + name)
sys.meta_path.insert(0, Blocked())
import numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
images = pipeline(batch_size=3, class_labels=[0, 1, 2], num_inference_steps=4,
                  generator=torch.Generator().manual_seed(7)).images
np.save(sys.argv[2], np.stack([np.asarray(image) for image in images]))
assert not [name for name in sys.modules if name.startswith(("curriculumdp", "dpkernels"))]
"""


def test_stock_diffusers_samples_the_release_as_we_do(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.npy"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", PLAIN_DIFFUSERS, str(release), str(out)],
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    theirs = np.load(out).astype(int)
    net, sigma_data = load_pipeline(release)
    noise = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        ours = denoise(net, noise[None], torch.arange(3), steps=4, sampler="dpm", sigma_data=sigma_data)
    pixels = ((ours / 2 + 0.5).clamp(0, 1) * 255).round().int().numpy()[:, 0]
    assert theirs.shape == (3, 8, 8)
    assert np.abs(theirs - pixels).max() <= 1
    assert theirs.std() > 1


def test_a_fresh_release_verifies(release: Path) -> None:
    assert verify_release(release) == []


def test_only_allowed_files_leave_and_all_can_read_them(release: Path, tmp_path: Path) -> None:
    assert REQUIRED | {"privacy.json", "central.png"} == names(release) <= ALLOWED
    before = os.umask(0o077)
    try:
        strict = write_release(tmp_path / "release")
    finally:
        os.umask(before)
    for path in [strict, *strict.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_no_file_tells_where_it_was_made(release: Path) -> None:
    for name in names(release):
        content = (release / name).read_bytes()
        for secret in (str(release.parent), os.path.expanduser("~") + "/", "_name_or_path"):
            assert secret.encode() not in content, (name, secret)
    assert not re.search(r"(^|[\s\"'(])/(home|tmp|work|root|usr)/", (release / "README.md").read_text())


def test_a_network_that_was_loaded_from_a_path_does_not_carry_it_along(release: Path, tmp_path: Path) -> None:
    config = dict(load_pipeline(release)[0].config) | {"_name_or_path": "/home/someone/public-model"}
    folder = write_release(tmp_path / "release", net_config=config)
    assert all(b"/home/someone" not in (folder / name).read_bytes() for name in names(folder))


def test_scheduler_is_saved_with_the_noise_levels_that_were_trained(release: Path) -> None:
    """Left at diffusers' sigma_data of 0.5 the samples would be wrong, quietly."""
    saved = json.loads((release / "scheduler/scheduler_config.json").read_text())
    figures = [saved[name] for name in ("sigma_data", "sigma_min", "sigma_max", "rho")]
    assert figures == [3**-0.5, 0.002, 80.0, 7.0]


def test_certificate_states_everything_that_the_guarantee_needs(release: Path) -> None:
    whole = json.loads((release / "privacy.json").read_text())
    assert whole["guarantee"]["epsilon"] == 6.0
    assert [row["count"] for row in whole["guarantee"]["events"]] == [3, 40]
    assert whole["guarantee"]["events"][1]["clip_norm"] == 1.0
    assert whole["guarantee"]["stopped"] == "planned"
    words = " ".join(whole["statement"].values())
    for needed in (
        "zero-out",
        "one image",
        "input checks",
        "Replace-one",
        "This run alone",
        "None were shown",
    ):
        assert needed.lower() in words.lower(), needed
    cost = whole["accounting"]
    assert cost["opacus_prv"][0] <= cost["epsilon_of_events"] <= 6.0
    assert cost["epsilon_of_events"] < cost["opacus_rdp"]
    assert 1.5 < cost["epsilon_replace_one"] / cost["epsilon_of_events"] < 2.3
    assert set(whole["files"]) == names(release) - {"privacy.json"}
    assert whole["versions"]["torch"] == torch.__version__


def test_shown_private_metrics_are_certified(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release", guarantee=guarantee(private_metrics_shown=True))
    assert "shown on the console" in (folder / "privacy.json").read_text()
    assert "shown on the console" in (folder / "README.md").read_text()


def test_a_promise_that_the_releases_break_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"promises ε = 0\.5 at δ = 0\.0001, but its events cost"):
        write_release(tmp_path / "release", guarantee=guarantee(epsilon=0.5))
    assert list(tmp_path.iterdir()) == []


def test_prv_alone_can_refuse_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curriculumdp.release.certificate.epsilon", lambda events, delta: 1.0)
    with pytest.raises(CertificateError, match="by Opacus's PRV") as raised:
        write_release(tmp_path / "release", guarantee=guarantee(epsilon=1.5))
    assert "\n" not in str(raised.value)


def test_a_certificate_that_disagrees_with_the_config_is_never_written(tmp_path: Path) -> None:
    wrong = CONFIG | {"private": CONFIG["private"] | {"sample_rate": 0.3}}
    with pytest.raises(CertificateError, match=r"private\.sample_rate is 0\.3"):
        write_release(tmp_path / "release", config=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_release_without_central_images_can_be_written(tmp_path: Path) -> None:
    said = guarantee(events=certified_events(EVENTS[1:], {"private": 1.0}))
    config = CONFIG | {"curriculum": ["private"]}
    folder = write_release(tmp_path / "a/b/release", central=None, guarantee=said, config=config)
    assert "central.png" not in names(folder)
    assert verify_release(folder) == []


def test_repeated_export_replaces_a_release_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    private, public = write_keys(tmp_path / "keys", "ours")
    folder = write_release(tmp_path / "out" / "release")
    write_release(folder, signing_key=private, samples=SampleSettings("dpm", 3, 1, seed=1))
    assert verify_release(folder, public) == []
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match="holds something other than a release"):
        write_release(folder)
    assert (folder / "thesis.tex").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["release"]


def other_weights(folder: Path) -> dict[str, Any]:
    """What another run of the same config would write: the same promise, other weights."""
    weights = dict(load_pipeline(folder)[0].named_parameters())
    return {"weights": weights | {"conv_out.bias": weights["conv_out.bias"] + 1e-6}}


OTHER_RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "another end": lambda _: {"guarantee": guarantee(stopped="operator")},
    "another promise": lambda _: {"guarantee": guarantee(epsilon=6.5)},
    "fewer events": lambda _: {
        "guarantee": guarantee(events=certified_events(EVENTS[:1], {"central": 4.0}), stopped="budget")
    },
    "shown metrics": lambda _: {"guarantee": guarantee(private_metrics_shown=True)},
    "other weights": other_weights,
}


@pytest.mark.parametrize("other", OTHER_RUNS)
def test_a_release_of_another_run_is_never_replaced(tmp_path: Path, other: str) -> None:
    folder = write_release(tmp_path / "release")
    before = contents(folder)
    changes = OTHER_RUNS[other](folder)
    with pytest.raises(ExportError, match="holds another release"):
        write_release(folder, **changes)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_release_whose_certificate_is_damaged_is_not_replaced(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    (folder / "privacy.json").write_text("{}")
    with pytest.raises(ExportError, match="holds another release"):
        write_release(folder)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "place", [".", "..", "../..", "sub/..", "private", "private/new", "private/a/b", "release/new"]
)
def test_a_place_that_is_taken_or_inside_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Relative names, too, which no folder can be renamed to."""
    run = tmp_path / "runs" / "run"
    (run / "sub").mkdir(parents=True)
    (run / "private").mkdir()
    (run / "private" / "ledger.jsonl").write_text("")
    write_release(run / "release")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(run)
    with pytest.raises(ExportError) as raised:
        write_release(Path(place))
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_release_that_a_kill_left_aside_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renames: another run's export must not take the place for free."""
    folder = write_release(tmp_path / "release")
    before = contents(folder)
    original = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == ".release.unfinished":
            raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_release(folder)
    assert not folder.exists()
    with pytest.raises(ExportError, match="holds another release"):
        write_release(folder, guarantee=guarantee(stopped="operator"))
    assert contents(folder) == before
    write_release(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_what_comes_before_publishing_is_the_last_that_can_refuse(tmp_path: Path) -> None:
    """A run is sealed there: it must find a whole release beside, and a refusal leaves none."""
    seen: list[list[str]] = []

    def refuse() -> None:
        seen.append(verify_release(tmp_path / ".release.unfinished"))
        raise SignatureError("refused")

    with pytest.raises(SignatureError, match="refused"):
        write_release(tmp_path / "release", before_publishing=refuse)
    assert seen == [[]]
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_no_half_release_and_keeps_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_release(tmp_path / "release")
    before = (folder / "privacy.json").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "_publish", full_disk)
        with pytest.raises(ExportError, match="No space left on device"):
            write_release(folder)
    diverged = {"conv_out.bias": torch.tensor([float("nan")])}
    weights = dict(load_pipeline(folder)[0].named_parameters()) | diverged
    with pytest.raises(SamplingError, match="not finite"):
        write_release(tmp_path / "diverged", weights=weights)
    assert (folder / "privacy.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_signed_release_proves_its_origin_and_never_holds_the_key(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ours")
    _, other = write_keys(tmp_path, "theirs")
    folder = write_release(tmp_path / "release", signing_key=private)
    assert verify_release(folder, public) == []
    assert verify_release(folder, other) == [f"privacy.json is not signed by {other}"]
    secret = b"".join(private.read_bytes().split(b"\n")[1:-2])
    assert all(secret not in (folder / name).read_bytes() for name in names(folder))
    with pytest.raises(SignatureError, match="not a private key in PEM"):
        write_release(tmp_path / "second", signing_key=public)
    assert not (tmp_path / "second").exists()


def test_training_config_comes_back_as_it_was(release: Path) -> None:
    assert yaml.safe_load((release / "training_config.yaml").read_text()) == CONFIG


def test_model_card_tells_how_to_sample(release: Path) -> None:
    card = (release / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "diffusers"
    assert "differential-privacy" in metadata["tags"]
    snippet = card.split("```python\n")[1].split("```")[0]
    compile(snippet, "README.md", "exec")
    for needed in ("num_inference_steps=3", "class_labels=", "torch.Generator()"):
        assert needed in snippet


def test_certified_release_refuses_what_no_mechanism_has() -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        CertifiedEvent(
            name="private",
            mechanism="gaussian",
            sample_rate=1.5,
            noise_multiplier=1.0,
            clip_norm=1.0,
            count=1,
        )
