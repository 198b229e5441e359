"""The PUBLIC artefact: a folder that stock diffusers loads, with a machine-checkable certificate.

Files come from an allow-list (`files.ALLOWED`); nothing else of a run can get into a release. The folder is written
next to its target, checked against its own certificate and renamed: there is a complete release or none.
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
from curriculumdp.disk import replace_folder, sync, unfinished
from curriculumdp.errors import UserError
from curriculumdp.ledger.run_files import LEDGER
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.release.agreement import config_problems, network_problems
from curriculumdp.release.certificate import (
    Certificate,
    CertificateError,
    CertifiedEvent,
    Guarantee,
    account,
    certificate_bytes,
)
from curriculumdp.release.files import (
    CENTRAL,
    CERTIFICATE,
    CONFIG,
    FREQUENCY,
    SIGNATURE,
    WEIGHTS,
    file_problems,
    file_sha256,
    list_files,
)
from curriculumdp.release.model_card import model_card
from curriculumdp.release.signature import sign
from curriculumdp.release.terms import require_license
from curriculumdp.release.verify import read_certificate

SOFTWARE = ("curriculumdp", "torch", "diffusers", "safetensors", "dp-accounting", "opacus", "cryptography")


class ExportError(UserError):
    """A release that cannot be written; the message is one line."""


@dataclass(frozen=True)
class SampleSettings:
    """How samples.png is made: `per_class` images of each class, one class per row."""

    sampler: str
    steps: int
    per_class: int
    seed: int


def certified_events(
    events: Sequence[PrivacyEvent], clip_norms: Mapping[str, float]
) -> tuple[CertifiedEvent, ...]:
    """Return the events as a certificate lists them. clip_norms: C by event name."""
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
    frequency: Tensor | None = None,
    samples: SampleSettings,
    signing_key: Path | None = None,
    license_: str | None = None,
    device: torch.device | str = "cpu",
    before_publishing: Callable[[], object] = lambda: None,
) -> Path:
    """Write a complete release to `folder` and return `folder`. Called by rank 0 at the end of a run.

    Files get mode 0644, folders 0755. An earlier release in `folder` is replaced if it is of the same run: the same
    promise and the same weights.

    weights: the EMA by parameter name, e.g. `module_tensors(net, state.ema)`. net_config: `net.config`.
    guarantee: what the run promises and all that it spent (`certified_events`). config: the resolved config
    WITHOUT paths. central: uint8 [M, C, H, W], class by class within a query, or None (or M = 0). frequency: the same,
    class by class in turn, of which the first are shown. signing_key: an Ed25519 private key (PEM). license_: what the
    model card states, if anything. device: where to sample. before_publishing: called when everything is written,
    checked and synced; after it only the last rename can fail.

    All arguments must be public. Raises, with nothing written: ExportError, CertificateError (the events
    cost more than is promised), AccountingError, SignatureError, SamplingError.
    """
    require_license(license_)
    asked, folder = folder, _resolved(folder)
    _bring_back(folder)
    _check_target(folder, guarantee, weights)
    accounting = account(guarantee)
    with _staged(folder, before_publishing) as staging:
        names = guarantee.public.id2label
        net = save_pipeline(staging, weights, net_config, sigma_data, names).to(device)
        labels = torch.arange(guarantee.public.classes).repeat_interleave(samples.per_class)
        pictures = sample_images(
            net,
            labels,
            steps=samples.steps,
            sampler=samples.sampler,
            sigma_data=sigma_data,
            generator=torch.Generator().manual_seed(samples.seed),
        )
        image_grid(pictures, samples.per_class).save(staging / "samples.png")
        if central is not None and len(central):
            _central_grid(np.asarray(central), guarantee.public.classes).save(staging / CENTRAL)
        if frequency is not None and len(frequency):
            _class_rows(frequency.numpy(), guarantee.public.classes, samples.per_class).save(
                staging / FREQUENCY
            )
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        (staging / CONFIG).write_text(text, encoding="utf-8")
        shown = [name for name in (CENTRAL, FREQUENCY) if (staging / name).exists()]
        how = (samples.sampler, samples.steps)
        null = int(net.config.num_class_embeds) > guarantee.public.classes
        card = model_card(str(config["name"]), guarantee, accounting, how, shown, null, license_)
        (staging / "README.md").write_text(card, encoding="utf-8")
        _certify(staging, guarantee, accounting, signing_key)
        _check_target(folder, guarantee, weights)
    return asked


def other_release(folder: Path, guarantee: Guarantee, weights: Mapping[str, Tensor] | None) -> str | None:
    """Return what shows that `folder` holds the release of another run, or None if it is this guarantee's and weights'.

    Two runs of one config make the same promise, but never have the same weights.
    """
    try:
        certificate = read_certificate(folder)
    except CertificateError as error:
        return str(error)
    if certificate.guarantee != guarantee:
        return "its certificate belongs to another run, or to another state of this one"
    if weights is not None and not _holds(folder / WEIGHTS, weights):
        return "its weights belong to another run, or to another state of this one"
    return None


def damage(folder: Path) -> str | None:
    """Return the first mismatch between a release's files and its certificate, or None. Raises CertificateError."""
    found, problems = list_files(folder)
    problems += file_problems(folder, found, read_certificate(folder))
    return problems[0] if problems else None


def _holds(file: Path, weights: Mapping[str, Tensor]) -> bool:
    try:
        with safe_open(file, framework="pt") as saved:
            # Older versions released the null class too, the last row of the class embedding.
            return set(saved.keys()) == set(weights) and all(
                torch.equal(saved.get_tensor(name)[: len(part)], part.detach().float().cpu())
                for name, part in weights.items()
            )
    except (OSError, SafetensorError):
        return False


def _certify(folder: Path, guarantee: Guarantee, accounting: Any, signing_key: Path | None) -> None:
    """Write the certificate of the files in `folder`, sign it, and check the folder against it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    certificate = Certificate(
        guarantee=guarantee,
        accounting=accounting,
        versions={name: _version(name) for name in SOFTWARE},
        files={name: file_sha256(folder / name) for name in names},
    )
    content = certificate_bytes(certificate)
    (folder / CERTIFICATE).write_bytes(content)
    if signing_key is not None:
        (folder / SIGNATURE).write_bytes(sign(content, signing_key))
    found, problems = list_files(folder)
    problems += file_problems(folder, found, certificate) + config_problems(folder, guarantee)
    problems += network_problems(folder, guarantee)
    if problems:
        raise CertificateError(f"the release would not verify: {problems[0]}")


def _central_grid(images: np.ndarray, classes: int) -> Any:
    """Return a roughly square grid; each row holds complete queries (one image per class)."""
    queries = max(1, round((len(images) ** 0.5) / classes))
    return image_grid(images.transpose(0, 2, 3, 1), classes * queries)


def _class_rows(images: np.ndarray, classes: int, per_class: int) -> Any:
    """Return a grid of the first `per_class` images of each class, one class per row."""
    count = min(per_class, len(images) // classes)
    rows = images[: count * classes].reshape(count, classes, *images.shape[1:]).swapaxes(0, 1)
    return image_grid(rows.reshape(-1, *images.shape[1:]).transpose(0, 2, 3, 1), count)


def _resolved(folder: Path) -> Path:
    """Return the path of `folder` in a form that a rename can target, unlike `.`; a symlink at its end is kept."""
    return folder.resolve() if folder.name in ("", "..") else folder.parent.resolve() / folder.name


def _check_target(folder: Path, guarantee: Guarantee, weights: Mapping[str, Tensor]) -> None:
    """Raise ExportError unless `folder` is new, empty, or an earlier release of this run with nothing else in it."""
    for above in folder.parents:
        for name, what in ((LEDGER, "a private folder"), (CERTIFICATE, "another release")):
            if (above / name).exists():
                raise ExportError(f"{folder} is inside {what} ({above}): choose another folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder} is not a folder: choose another path")
    if folder.is_dir() and any(folder.iterdir()):
        found, others = list_files(folder)
        if others or CERTIFICATE not in found:
            raise ExportError(f"{folder} holds something other than a release: choose an empty or new folder")
        if difference := other_release(folder, guarantee, weights):
            raise ExportError(
                f"{folder} holds another release ({difference}), which is never replaced: choose a new folder"
            )


def _replaced(folder: Path) -> Path:
    """Return where an earlier release is kept while a new one replaces it."""
    return folder.with_name(f".{folder.name}.replaced")


def _bring_back(folder: Path) -> None:
    """Rename back an earlier release that a process killed between two renames had moved aside."""
    if _replaced(folder).is_dir() and not os.path.lexists(folder):
        _replaced(folder).rename(folder)


@contextmanager
def _staged(folder: Path, before_publishing: Callable[[], object]) -> Iterator[Path]:
    """Yield a new sibling of `folder`, renamed to `folder` if the block succeeds and removed if it fails."""
    staging, replaced = unfinished(folder), _replaced(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (staging, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
        yield staging
        _publish(staging)
        before_publishing()
        replace_folder(staging, folder, replaced)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ExportError(f"{folder}: the release could not be written: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if folder.exists():  # otherwise the earlier release is the only one: the next export brings it back
            shutil.rmtree(replaced, ignore_errors=True)


def _publish(folder: Path) -> None:
    """Make everything readable by everyone (diffusers writes weights with mode 0600) and durable on disk."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # curriculumdp is not installed in a bare checkout
        return "not installed"
