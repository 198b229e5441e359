"""A run's folder as rank 0 keeps it: the lock, the config, the secret, the ledger, the checkpoints.

run/private/   mode 0700, never leaves: lock, config.json, secret, ledger.jsonl, checkpoints/, metrics.jsonl, cache/
run/release/   what may leave, written once at the end (design D5)
"""

import hashlib
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

from curriculumdp.checkpoint import Position, load_latest, save_checkpoint
from curriculumdp.config.changes import resume_differences
from curriculumdp.config.config import Config, config_from
from curriculumdp.curriculum.dataset import attach, dataset_ledger
from curriculumdp.curriculum.plan import plan_curriculum
from curriculumdp.curriculum.release import guarantee_of, weights_of
from curriculumdp.curriculum.state import State
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
# There once a leg of the run has shown private metrics: the certificate must say so whatever later legs do.
SHOWN = "metrics_were_shown"


class FolderError(UserError):
    """A run folder that this config cannot begin in or go on with; the message is one line."""


class RunFolder:
    """Rank 0's hold on a run's folder. PRIVATE. Every method is called on rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self.path, self.private, self.release = path, path / "private", path / "release"
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None, "the ledger is opened before anything is spent"
        return self._ledger

    @property
    def secret_file(self) -> Path:
        return self.private / SECRET

    @property
    def cache(self) -> Path:
        return self.private / "cache"

    @property
    def pending_cache(self) -> Path:
        """Where decoded images lie until the command that decoded them is accepted."""
        return self.private / ".cache.unfinished"

    def claim(self, stack: ExitStack, config: Config) -> bool:
        """True if the run is sealed already. Locks the folder until `stack` unwinds; refuses another run's.

        Writes nothing but the lock, so that a command refused here or later leaves the folder as it was; `accept`
        writes. Raises LedgerError if another process holds it, FolderError if it cannot be written, holds a release
        that no run there can have written, or its config differs in what a run may not change.
        """
        try:
            make_folder(self.path)
            stack.enter_context(RunLock(self.private))
        except OSError as error:
            raise FolderError(
                f"run_dir {self.path}: cannot be written ({error.strerror}): name another"
            ) from error
        shutil.rmtree(self.pending_cache, ignore_errors=True)
        stack.callback(shutil.rmtree, self.pending_cache, ignore_errors=True)
        missing = ledger_is_missing(self.private)
        if missing and os.path.lexists(self.release):
            raise FolderError(
                f"{self.release}: is of a run whose private folder is gone: move it away, or set another run_dir"
            )
        begun = not (missing or (key_is_cut(self.private) and self.secret_file.exists()))
        sealed = begun and self._read_ledger().sealed is not None
        self._compare_config(config)
        if sealed:
            self._settle()
        else:
            self._require_no_release()
        return sealed

    def claim_for_export(self, stack: ExitStack, end_run: bool) -> None:
        """Opens what is there of a run, to export it and, with `end_run`, to seal it if it is not sealed yet.

        Raises FolderError where there is no run, or one that is not finished without `end_run`.
        """
        if not (self.private / CONFIG).exists():
            raise FolderError(f"{self.path} holds no run: name a run's folder, such as runs/digits")
        stack.enter_context(RunLock(self.private))
        if ledger_is_missing(self.private):
            raise FolderError(f"{self.path} holds a run that has not begun: there is nothing to export")
        ledger = self._read_ledger()
        config = self._config()
        if ledger.sealed is None:
            self._require_no_release()
            self._require_end(ledger, end_run)
            self._ledger = Ledger.open(self.private, RunSecret.load(self.secret_file), {}, None)
            stack.callback(self._ledger.close)
        self._attach(config, None)

    def _read_ledger(self) -> Ledger:
        """Read the ledger; of a sealed run, erase the secret that a kill right after the seal left behind."""
        self._ledger = Ledger.read(self.private)
        if self._ledger.sealed is not None and self.secret_file.exists():
            # Of a process killed between write and sync, only memory may hold the seal.
            sync(self.private / LEDGER)
            self.forget_secret()
        return self._ledger

    def _require_no_release(self) -> None:
        """Refuse a release beside a run that is not sealed: it is written after the seal, so private/ is older."""
        if os.path.lexists(self.release):
            raise FolderError(
                f"{self.release}: lies beside a run that is not finished, so {self.private} was rolled back or "
                "copied: bring its newest state back, or set another run_dir"
            )

    def _require_end(self, ledger: Ledger, end_run: bool) -> None:
        """Refuse to end an unfinished run without being told to."""
        if not end_run:
            made, planned = (sum(row.count for row in rows) for rows in (ledger.events(), ledger.planned))
            raise FolderError(
                f"{self.path}: the run is not finished, and an export would end it for good after {made} of "
                f"{planned} planned events: resume training, or add --end-run"
            )

    def _saved(self) -> dict[str, Any]:
        """The options that were written down last; raises FolderError if they cannot be read."""
        file = self.private / CONFIG
        try:
            saved = json.loads(file.read_text())
            if not isinstance(saved, dict):
                raise ValueError("it holds no options")
        except (OSError, ValueError, RecursionError) as error:
            raise FolderError(
                f"{file}: cannot be read ({error}): bring it back or use another run_dir"
            ) from None
        return saved

    def _config(self) -> Config:
        """The run's own config, as it was when its ledger began; raises FolderError or ConfigError."""
        file = self.private / CONFIG
        config = config_from(self._saved(), str(file))
        if config_digest(config) != self.ledger.plan.get("config"):
            raise FolderError(
                f"{file}: is not what this run's ledger began with: bring it back, or the program's version"
            )
        return config

    def _attach(self, config: Config, data: Sequence[NDArray[Any]] | None) -> None:
        """Ties the run to its data set's ledger; one that finds no room there may begin anew with another plan."""
        try:
            attach(config, self.ledger, data)
        except NoRoom:
            if len(self.ledger.macs) == 1:  # the plan alone: nothing was drawn
                self.ledger.close()
                forget_unbegun(self.private)
            raise

    def _settle(self) -> None:
        """Gives back what a sealed run did not use, where a kill came before that; what is released is not refused.

        Raises LedgerError, before there is a release, where the data set's ledger tells of a resumed copy.
        """
        try:
            self._attach(self._config(), None)
        except (FolderError, LedgerError) as error:
            if not self.release.exists():
                raise
            print(f"warning: {error}", flush=True)

    def _compare_config(self, config: Config) -> None:
        file = self.private / CONFIG
        if file.exists() and not ledger_is_missing(self.private):  # without a ledger nothing has begun
            saved = self._saved()
            changed = [d for d in resume_differences(saved, config) if d.kind == "refused"]
            if changed:
                raise FolderError(
                    f"{self.path} holds a run of another config: {changed[0]}"
                    + (f" (and {len(changed) - 1} more)" if changed[1:] else "")
                    + ": change it back, or set another run_dir"
                )

    def accept(self, config: Config) -> None:
        """Write down the options of a command that trains from here on; to be called before it shows anything."""
        self._keep_config(config)
        if config.logging.show_private_metrics:
            write_whole(self.private / SHOWN, b"private metrics were shown on the console\n")
        if self.pending_cache.is_dir():
            self.cache.mkdir(mode=0o700, exist_ok=True)
            for file in self.pending_cache.iterdir():
                file.replace(self.cache / file.name)
            self.pending_cache.rmdir()

    def _keep_config(self, config: Config) -> None:
        write_whole(self.private / CONFIG, json.dumps(config.resolved(), indent=1).encode())

    def open_ledger(
        self, stack: ExitStack, config: Config, images: ImageSet, parameters: int, secret: RunSecret | None
    ) -> bytes:
        """The plan's record (JSON): solved now and written down first, or the ledger's of a run that goes on."""
        facts = {
            "config": config_digest(config),
            "parameters": parameters,
            "epsilon": config.privacy.epsilon,
            "delta": config.privacy.delta,
        }
        data = list(images.content_arrays().values())
        if ledger_is_missing(self.private):
            plan = plan_curriculum(config)
            for release in plan.events():
                check_capacity(config.data.units, release.noise_multiplier)
            if shared := dataset_ledger(config):
                shared.require_room(plan.events())
            self._keep_config(config)  # a ledger without it could not be exported
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

    def checkpointed(self, untrained: Callable[[Config, torch.device], State]) -> tuple[Config, State]:
        """The run's own config and the state of its latest checkpoint, on the CPU, for an export."""
        config = self._config()
        state = untrained(config, torch.device("cpu"))
        found = self.latest(print)
        if found is None:
            raise FolderError(f"{self.path} has no checkpoint yet: there is nothing to export")
        if not self.ledger.events():
            raise FolderError(f"{self.path} has learnt nothing yet: train it before you export it")
        state.load(found[1])
        return config, state

    def release_problem(self, untrained: Callable[[Config, torch.device], State]) -> str | None:
        """Tell what is wrong with the release of this sealed run, or None: it is whole, and of this very run.

        A run whose last checkpoint was removed or damaged after its end is told by its certificate alone.
        """
        config, weights, damaged = self._config(), None, list[str]()
        found = self.latest(damaged.append)
        if found is not None and not damaged:
            state = untrained(config, torch.device("cpu"))
            state.load(found[1])
            weights = weights_of(state)
        guarantee = guarantee_of(config, self.ledger, self.metrics_shown)
        return other_release(self.release, guarantee, weights) or damage(self.release)

    def latest(self, warn: Callable[[str], None]) -> tuple[Position, dict[str, torch.Tensor]] | None:
        """The latest whole checkpoint, or None; the ledger must be one that goes on from the one it saw."""
        found = load_latest(self.private / CHECKPOINTS, self.ledger.checkpoint_key, warn)
        if found is not None:
            self.ledger.check_prefix(found[0].ledger_count, found[0].ledger_mac)
        return found

    def save(self, config: Config, state: State) -> None:
        """Writes a checkpoint of `state`, tied to the ledger as it is now."""
        names = [*config.curriculum, "done"]
        position = Position(state.phase, names[state.phase], state.step, *self.ledger.head())
        keep = config.checkpoint.keep
        save_checkpoint(
            self.private / CHECKPOINTS, position, state.tensors(), self.ledger.checkpoint_key, keep
        )

    def seal(self, reason: str) -> None:
        """Ends the ledger ("planned", "budget", "operator") and erases the secret: nothing is drawn after this."""
        if self.ledger.sealed is None:
            self.ledger.seal(reason)
        self.forget_secret()

    def forget_secret(self) -> None:
        """Erases the secret: no draw of this run can be made again. The ledger's key stays."""
        if self.secret_file.exists():
            erase_private(self.secret_file)

    @property
    def metrics_shown(self) -> bool:
        return (self.private / SHOWN).exists()


def within(config: Config) -> Callable[[Sequence[PrivacyEvent]], bool]:
    """Whether events together keep to the config's budget: asked only beyond what the plan has paid for."""
    budget = config.privacy

    def allows(events: Sequence[PrivacyEvent]) -> bool:
        try:
            return epsilon(events, budget.delta) <= budget.epsilon
        except AccountingError:  # so many at once cost more than an accountant will compute
            return False

    return allows


def config_digest(config: Config) -> str:
    """SHA-256 (hex) of the options that a run may not change."""
    blank = config.model_validate(config.resolved())
    options = {d.key for d in resume_differences({}, blank) if d.kind == "refused"}
    flat = {d.key: d.now for d in resume_differences({}, config) if d.key in options}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
