"""The PUBLIC artefact: a folder that stock diffusers loads, with a certificate that a machine can check.

Files come from an allow-list (`verify.ALLOWED`); nothing else of a run can get into a release. It is written
beside its place, held against its own certificate, and renamed: there is a whole release or none.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from curriculumdp.diffusion.pictures import image_grid
from curriculumdp.diffusion.pipeline import save_pipeline
from curriculumdp.diffusion.sample import sample_images
from curriculumdp.disk import sync, unfinished
from curriculumdp.errors import UserError
from curriculumdp.ledger.run_files import LEDGER
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.release.certificate import (
    Certificate,
    CertificateError,
    CertifiedEvent,
    Guarantee,
    account,
    certificate_bytes,
)
from curriculumdp.release.model_card import model_card
from curriculumdp.release.signature import sign
from curriculumdp.release.verify import (
    CERTIFICATE,
    CONFIG,
    SIGNATURE,
    WEIGHTS,
    config_problems,
    file_problems,
    file_sha256,
    list_files,
    read_certificate,
)

SOFTWARE = ("curriculumdp", "torch", "diffusers", "safetensors", "dp-accounting", "opacus", "cryptography")


class ExportError(UserError):
    """A release that cannot be written; the message is one line."""


@dataclass(frozen=True)
class SampleSettings:
    """How samples.png is made: `per_class` images of each class, one class a row."""

    sampler: str
    steps: int
    per_class: int
    seed: int


def certified_events(
    events: Sequence[PrivacyEvent], clip_norms: Mapping[str, float]
) -> tuple[CertifiedEvent, ...]:
    """The events as a certificate lists them; clip_norms: C by release name."""
    return tuple(
        CertifiedEvent(
            name=row.name,
            mechanism=row.mechanism,
            sample_rate=float(row.sample_rate),
            noise_multiplier=float(row.noise_multiplier),
            clip_norm=float(clip_norms[row.name]),
            count=row.count,
        )
        for row in events
    )


def export_release(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    net_config: Mapping[str, Any],
    sigma_data: float,
    guarantee: Guarantee,
    config: Mapping[str, Any],
    central: Tensor | np.ndarray | None,
    samples: SampleSettings,
    signing_key: Path | None = None,
    device: torch.device | str = "cpu",
    before_publishing: Callable[[], object] = lambda: None,
) -> Path:
    """`folder`, now holding a whole release; files 0644, folders 0755. Called by rank 0 at the end of a run.

    weights: the EMA by parameter name, e.g. `module_tensors(net, state.ema)`. net_config: `net.config`.
    guarantee: what the run promises and all that it spent (`certified_events`). config: the resolved config
    WITHOUT paths. central: uint8 [M, C, H, W], class by class within a query, or None (or M = 0).
    signing_key: an Ed25519 private key (PEM). device: where samples are drawn. An earlier release in `folder`
    is replaced if it is of the same run, that is, promises the same and has the same weights. before_publishing:
    called once all is written, checked and synced; after it only the last rename can fail.

    Everything given must be public. Raises, with nothing written: ExportError, CertificateError (the events
    cost more than is promised), AccountingError, SignatureError, SamplingError.
    """
    asked, folder = folder, _resolved(folder)
    _bring_back(folder)
    _check_place(folder, guarantee, weights)
    accounting = account(guarantee)
    with _beside(folder, before_publishing) as place:
        net = save_pipeline(place, weights, net_config, sigma_data).to(device)
        labels = torch.arange(guarantee.public.classes).repeat_interleave(samples.per_class)
        pictures = sample_images(
            net,
            labels,
            steps=samples.steps,
            sampler=samples.sampler,
            sigma_data=sigma_data,
            generator=torch.Generator().manual_seed(samples.seed),
        )
        image_grid(pictures, samples.per_class).save(place / "samples.png")
        if central is not None and len(central):
            _central_grid(np.asarray(central), guarantee.public.classes).save(place / "central.png")
        (place / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        has_central = (place / "central.png").exists()
        card = model_card(str(config["name"]), guarantee, accounting, samples.steps, has_central)
        (place / "README.md").write_text(card)
        _certify(place, guarantee, accounting, signing_key)
        _check_place(folder, guarantee, weights)
    return asked


def other_release(folder: Path, guarantee: Guarantee, weights: Mapping[str, Tensor] | None) -> str | None:
    """Tell by what the release in `folder` is of another run than this guarantee and weights, or None if it is not.

    Two runs of one config promise the same, but never have the same weights.
    """
    try:
        certificate = read_certificate(folder)
    except CertificateError as error:
        return str(error)
    if certificate.guarantee != guarantee:
        return "its certificate is of another run, or of another state of this one"
    if weights is not None and not _holds(folder / WEIGHTS, weights):
        return "its weights are of another run, or of another state of this one"
    return None


def damage(folder: Path) -> str | None:
    """Tell in what a release is not as its certificate lists it, or None."""
    found, problems = list_files(folder)
    problems += file_problems(folder, found, read_certificate(folder))
    return problems[0] if problems else None


def _holds(file: Path, weights: Mapping[str, Tensor]) -> bool:
    try:
        with safe_open(file, framework="pt") as held:
            return set(held.keys()) == set(weights) and all(
                torch.equal(held.get_tensor(name), part.detach().float().cpu())
                for name, part in weights.items()
            )
    except (OSError, SafetensorError):
        return False


def _certify(place: Path, guarantee: Guarantee, accounting: Any, signing_key: Path | None) -> None:
    """Writes the certificate over what lies in `place`, signs it, and holds the whole against it."""
    names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    certificate = Certificate(
        guarantee=guarantee,
        accounting=accounting,
        versions={name: _version(name) for name in SOFTWARE},
        files={name: file_sha256(place / name) for name in names},
    )
    content = certificate_bytes(certificate)
    (place / CERTIFICATE).write_bytes(content)
    if signing_key is not None:
        (place / SIGNATURE).write_bytes(sign(content, signing_key))
    found, problems = list_files(place)
    problems += file_problems(place, found, certificate) + config_problems(place, guarantee)
    if problems:
        raise CertificateError(f"the release would not verify: {problems[0]}")


def _central_grid(images: np.ndarray, classes: int) -> Any:
    """About as wide as high, whole queries (one image a class) a row."""
    queries = max(1, round((len(images) ** 0.5) / classes))
    return image_grid(images.transpose(0, 2, 3, 1), classes * queries)


def _resolved(folder: Path) -> Path:
    """The folder by a name that it can be renamed to, as `.` cannot; a link in its own place stays one."""
    return folder.resolve() if folder.name in ("", "..") else folder.parent.resolve() / folder.name


def _check_place(folder: Path, guarantee: Guarantee, weights: Mapping[str, Tensor]) -> None:
    """Raises ExportError unless `folder` is free, empty, or an earlier release of the run with nothing else in it."""
    for above in folder.parents:
        for name, what in ((LEDGER, "a private folder"), (CERTIFICATE, "another release")):
            if (above / name).exists():
                raise ExportError(f"{folder} lies in {what} ({above}): name another place for the release")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder} is no folder: name another place for the release")
    if folder.is_dir() and any(folder.iterdir()):
        found, others = list_files(folder)
        if others or CERTIFICATE not in found:
            raise ExportError(f"{folder} holds other things than a release: name an empty or a new folder")
        if difference := other_release(folder, guarantee, weights):
            raise ExportError(
                f"{folder} holds another release ({difference}), which is not replaced: name a new folder"
            )


def _replaced(folder: Path) -> Path:
    """Where an earlier release lies while another takes its place."""
    return folder.with_name(f".{folder.name}.replaced")


def _bring_back(folder: Path) -> None:
    """Rename back an earlier release that a process killed between two renames left aside."""
    if _replaced(folder).is_dir() and not os.path.lexists(folder):
        _replaced(folder).rename(folder)


@contextmanager
def _beside(folder: Path, before_publishing: Callable[[], object]) -> Iterator[Path]:
    """A fresh sibling of `folder`, which takes its place if the block succeeds and is removed if it fails."""
    place, replaced = unfinished(folder), _replaced(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (place, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        place.mkdir()
        yield place
        _publish(place)
        before_publishing()
        _swap(place, folder, replaced)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ExportError(f"{folder}: the release could not be written: {reason}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if folder.exists():  # else the one aside is the only one, and the next export brings it back
            shutil.rmtree(replaced, ignore_errors=True)


def _swap(place: Path, folder: Path, replaced: Path) -> None:
    """Renames `place` to `folder`; an earlier release there goes to `replaced`, or comes back on failure."""
    earlier = folder.exists()
    if earlier:
        folder.rename(replaced)
    try:
        place.rename(folder)
    except OSError:
        if earlier:
            replaced.rename(folder)
        raise
    sync(folder.parent)


def _publish(place: Path) -> None:
    """Makes all of it readable by everyone (diffusers writes weights with mode 0600) and safe on disk."""
    for path in [*place.rglob("*"), place]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a bare checkout
        return "not installed"
