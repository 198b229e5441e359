"""The folder of a run: claimed, compared with the config, its ledger opened, its latest good checkpoint found; sealed.

run/private/   mode 0700, must never leave: lock, config.json, secret, ledger.jsonl, checkpoints/, metrics.jsonl, cache/
run/release/   what may leave, written once at the end (design D5)
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from curriculumdp.checkpoint import Position, authentic_positions, load_latest, save_checkpoint
from curriculumdp.config.changes import config_digest, resume_differences
from curriculumdp.config.config import Config, config_from
from curriculumdp.curriculum.dataset import attach, dataset_ledger
from curriculumdp.curriculum.declared import with_class_names
from curriculumdp.curriculum.plan import plan_curriculum
from curriculumdp.curriculum.release import guarantee_of, weights_of
from curriculumdp.curriculum.state import State
from curriculumdp.data.cache import PART
from curriculumdp.data.images import ImageSet
from curriculumdp.disk import make_folder, sync, write_whole
from curriculumdp.errors import UserError
from curriculumdp.ledger.dataset_ledger import NoRoom
from curriculumdp.ledger.run_files import LEDGER, forget_unbegun, key_is_cut
from curriculumdp.ledger.run_ledger import (
    CHECKPOINTS,
    SECRET,
    Ledger,
    LedgerError,
    RunLock,
    ledger_is_missing,
)
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.event import AccountingError, PrivacyEvent
from curriculumdp.privacy.grid_noise import check_capacity
from curriculumdp.privacy.secret import RunSecret, erase_private
from curriculumdp.release.export import damage, other_release

CONFIG = "config.json"
# Exists once any process of the run has shown private metrics: the certificate must say so whatever later ones do.
SHOWN = "metrics_were_shown"


class FolderError(UserError):
    """A run folder in which this config can neither start nor resume a run; the message is one line."""


class RunFolder:
    """Rank 0's access to the folder of a run. PRIVATE. Every method is called on rank 0 only."""

    def __init__(self, path: Path) -> None:
        self.path, self.private, self.release = path, path / "private", path / "release"
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None, "the ledger must be opened before anything is spent"
        return self._ledger

    @property
    def secret_file(self) -> Path:
        return self.private / SECRET

    @property
    def cache(self) -> Path:
        return self.private / "cache"

    @property
    def pending_cache(self) -> Path:
        """The folder of decoded images until the command that decoded them is accepted."""
        return self.private / ".cache.unfinished"

    def claim(self, stack: ExitStack, config: Config) -> bool:
        """Lock the folder until `stack` unwinds and return True if the run is already sealed.

        Writes nothing but the lock, so a command refused here or later leaves the folder as it was; `accept` writes
        the rest. Raises LedgerError if another process holds the lock, FolderError if the folder is not writable, if
        it holds a release that no run in it can have written, or if an option differs that a run may not change.
        """
        try:
            make_folder(self.path)
            stack.enter_context(RunLock(self.private))
        except OSError as error:
            raise FolderError(
                f"run_dir {self.path}: not writable ({error.strerror}): set another run_dir"
            ) from error
        self._drop_pending()
        stack.callback(self._drop_pending)
        missing = ledger_is_missing(self.private)
        if missing and os.path.lexists(self.release):
            raise FolderError(
                f"{self.release}: belongs to a run whose private folder is missing: move it elsewhere, or set another "
                "run_dir"
            )
        started = not (missing or (key_is_cut(self.private) and self.secret_file.exists()))
        sealed = started and self._read_ledger().sealed is not None
        self._compare_config(config)
        if sealed:
            self._settle()
        else:
            self._require_no_release()
        return sealed

    def claim_for_export(self, stack: ExitStack, end_run: bool) -> None:
        """Open an existing run for export; with `end_run`, it may be unfinished, and the export will seal it.

        Raises FolderError if there is no run, or if it is unfinished and `end_run` is not set.
        """
        if not (self.private / CONFIG).exists():
            raise FolderError(f"{self.path} holds no run: give the folder of a run, such as runs/digits")
        stack.enter_context(RunLock(self.private))
        if ledger_is_missing(self.private):
            raise FolderError(f"{self.path} holds a run that has not started: there is nothing to export")
        ledger = self._read_ledger()
        config = self._config()
        if ledger.sealed is None:
            self._require_no_release()
            self._require_end(ledger, end_run)
            self._ledger = Ledger.open(self.private, RunSecret.load(self.secret_file), {}, None)
            stack.callback(self._ledger.close)
        self._attach(config, None)

    def _read_ledger(self) -> Ledger:
        """Read the ledger; if the run is sealed, erase the secret that a kill right after the seal may have left."""
        self._ledger = Ledger.read(self.private)
        if self._ledger.sealed is not None and self.secret_file.exists():
            # If the process was killed between write and sync, the seal may be in memory only.
            sync(self.private / LEDGER)
            self.forget_secret()
        return self._ledger

    def _require_no_release(self) -> None:
        """Raise FolderError if an unsealed run has a release: that comes after the seal, so private/ is out of date."""
        if os.path.lexists(self.release):
            raise FolderError(
                f"{self.release}: exists although the run is not finished, so {self.private} was rolled back or "
                "copied: restore its latest state, or set another run_dir"
            )

    def _require_end(self, ledger: Ledger, end_run: bool) -> None:
        """Raise FolderError unless `end_run` allows the export to end an unfinished run."""
        if not end_run:
            done, planned = (sum(row.count for row in rows) for rows in (ledger.events(), ledger.planned))
            raise FolderError(
                f"{self.path}: the run is not finished, and an export would end it permanently after {done} of "
                f"{planned} planned events: resume training, or add --end-run"
            )

    def _saved(self) -> dict[str, Any]:
        """Return the options saved last; raise FolderError if they cannot be read."""
        file = self.private / CONFIG
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(saved, dict):
                raise ValueError("not a mapping of options")
        except (OSError, ValueError, RecursionError) as error:
            raise FolderError(
                f"{file}: cannot be read ({error}): restore it, or set another run_dir"
            ) from None
        return saved

    def _config(self) -> Config:
        """Return the run's own config, checked against its ledger's digest; raise FolderError or ConfigError."""
        file = self.private / CONFIG
        config = config_from(self._saved(), str(file))
        if config_digest(config) != self.ledger.plan.get("config"):
            raise FolderError(
                f"{file}: is not the config that this run's ledger started with: restore it, or use the program "
                "version that wrote it"
            )
        return config

    def _attach(self, config: Config, data: Sequence[NDArray[Any]] | None) -> None:
        """Attach the run to its data set's ledger; without room there, forget a run that has drawn nothing yet."""
        try:
            attach(config, self.ledger, data)
        except NoRoom:
            if len(self.ledger.macs) == 1:  # only the plan: nothing was drawn
                self.ledger.close()
                forget_unbegun(self.private)
            raise

    def _settle(self) -> None:
        """Return a sealed run's unused budget to the data set's ledger, in case a kill prevented that.

        Raises LedgerError if the data set's ledger knows of a resumed copy and there is no release yet; once there is
        one, errors are warnings.
        """
        try:
            self._attach(self._config(), None)
        except (FolderError, LedgerError) as error:
            if not self.release.exists():
                raise
            print(f"warning: {error}", flush=True)

    def _compare_config(self, config: Config) -> None:
        file = self.private / CONFIG
        if file.exists() and not ledger_is_missing(self.private):  # without a ledger nothing has started
            saved = self._saved()
            config = with_class_names(config, _names_in(saved))
            changed = [d for d in resume_differences(saved, config) if d.kind == "refused"]
            if changed:
                raise FolderError(
                    f"{self.path} holds a run with another config: {changed[0]}"
                    + (f" (and {len(changed) - 1} more)" if changed[1:] else "")
                    + ": change it back, or set another run_dir"
                )

    def fixed_names(self) -> bytes:
        """Return the classes' names as fixed at the run's start (JSON; null for none), or b"" if it has not begun."""
        if ledger_is_missing(self.private) or not (self.private / CONFIG).exists():
            return b""
        return json.dumps(_names_in(self._saved())).encode()

    def accept(self, config: Config) -> None:
        """Save the options of a command that is about to train; call it before the command shows any metrics."""
        self._keep_config(config)
        if config.logging.gives_private_metrics:
            write_whole(self.private / SHOWN, b"private metrics were shown on the console or to trackers\n")
        if self.pending_cache.is_dir():
            self.cache.mkdir(mode=0o700, exist_ok=True)
            for file in self.pending_cache.iterdir():
                if file.suffix != PART:
                    file.replace(self.cache / file.name)
            shutil.rmtree(self.pending_cache, ignore_errors=True)

    def _drop_pending(self) -> None:
        """Remove the images of a command that was not accepted; those of an interrupted decode stay, to be resumed."""
        if not any(self.pending_cache.glob(f"*{PART}")):
            shutil.rmtree(self.pending_cache, ignore_errors=True)

    def _keep_config(self, config: Config) -> None:
        write_whole(self.private / CONFIG, json.dumps(config.resolved(), indent=1).encode())

    def open_ledger(
        self, stack: ExitStack, config: Config, images: ImageSet, parameters: int, secret: RunSecret | None
    ) -> bytes:
        """Create or open the ledger and return the plan's record (JSON).

        A new run's plan is solved here and becomes the ledger's first entry; a resumed run's comes from its ledger.
        """
        facts = {
            "config": config_digest(config),
            "parameters": parameters,
            "epsilon": config.privacy.epsilon,
            "delta": config.privacy.delta,
        }
        data = list(images.content_arrays().values())
        if ledger_is_missing(self.private):
            plan = plan_curriculum(config)
            for event in plan.events():
                check_capacity(config.data.units, event.noise_multiplier)
            if shared := dataset_ledger(config):
                shared.require_room(plan.events())
            self._keep_config(config)  # a run without it could not be exported
            made = secret or RunSecret.create()
            made.save(self.secret_file)
            record = facts | {"phases": plan.record(), "events": [asdict(r) for r in plan.events()]}
            self._ledger = Ledger.create(self.private, made, record, data, within(config))
        else:
            kept = RunSecret.load(self.secret_file)
            self._ledger = Ledger.open(self.private, kept, facts, data, within(config))
        stack.callback(self.ledger.close)
        self._attach(config, data)
        return json.dumps(self.ledger.plan["phases"]).encode()

    def has_learnt(self) -> bool:
        """Return whether there is anything to export: a checkpoint, and an event it was trained on."""
        return bool(self.ledger.events()) and self.latest(print) is not None

    def checkpointed(self, untrained: Callable[[Config, torch.device], State]) -> tuple[Config, State]:
        """Return the run's own config and its latest checkpoint's state, on the CPU; raise FolderError without one."""
        config = self._config()
        state = untrained(config, torch.device("cpu"))
        found = self.latest(print)
        if found is None:
            raise FolderError(f"{self.path} has no checkpoint yet: there is nothing to export")
        if not self.ledger.events():
            raise FolderError(f"{self.path} has not been trained on any data yet: train it before exporting")
        state.load(found[1])
        return config, state

    def release_problem(self, untrained: Callable[[Config, torch.device], State]) -> str | None:
        """Describe what is wrong with the release of this sealed run; return None if it is intact and this run's.

        If the last checkpoint was removed or damaged after the end of the run, only the certificate is checked.
        """
        config, weights, damaged = self._config(), None, list[str]()
        found = self.latest(damaged.append)
        if found is not None and not damaged:
            state = untrained(config, torch.device("cpu"))
            state.load(found[1])
            weights = weights_of(config, state)
        guarantee = guarantee_of(config, self.ledger, self.metrics_shown)
        return other_release(self.release, guarantee, weights) or damage(self.release)

    def latest(self, warn: Callable[[str], None]) -> tuple[Position, dict[str, torch.Tensor]] | None:
        """Return the latest complete checkpoint, or None; raise LedgerError unless the ledger extends what all saw.

        A checkpoint with damaged tensors is still a witness of the ledger, if its record is authentic.
        """
        for position in authentic_positions(self.private / CHECKPOINTS, self.ledger.checkpoint_key):
            self.ledger.check_prefix(position.ledger_count, position.ledger_mac)
        found = load_latest(self.private / CHECKPOINTS, self.ledger.checkpoint_key, warn)
        return found

    def save(self, config: Config, state: State) -> None:
        """Write a checkpoint of `state`, bound to the current head of the ledger."""
        names = [*config.curriculum, "done"]
        position = Position(state.phase, names[state.phase], state.step, *self.ledger.head())
        keep = config.checkpoint.keep
        save_checkpoint(
            self.private / CHECKPOINTS, position, state.tensors(), self.ledger.checkpoint_key, keep
        )

    def seal(self, reason: str) -> None:
        """Seal the ledger ("planned", "budget", "operator") and erase the secret: nothing can be drawn after this."""
        if self.ledger.sealed is None:
            self.ledger.seal(reason)
        self.forget_secret()

    def forget_secret(self) -> None:
        """Erase the secret, so that no draw of this run can be repeated; the ledger's MAC key stays."""
        if self.secret_file.exists():
            erase_private(self.secret_file)

    @property
    def metrics_shown(self) -> bool:
        return (self.private / SHOWN).exists()


def within(config: Config) -> Callable[[Sequence[PrivacyEvent]], bool]:
    """Return a function that tells whether events fit the config's budget; it is asked only about unplanned ones."""
    budget = config.privacy

    def allows(events: Sequence[PrivacyEvent]) -> bool:
        try:
            return epsilon(events, budget.delta) <= budget.epsilon
        except AccountingError:  # so many events cost more than the accountant can compute
            return False

    return allows


def _names_in(saved: dict[str, Any]) -> list[str] | None:
    data = saved.get("data")
    return data.get("class_names") if isinstance(data, dict) else None
