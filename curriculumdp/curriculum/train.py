"""One run, from config to release: the same command starts it, resumes it, and reports where its release is.

Privacy depends on the order: the lock, the config, the data and the plan (solved once, kept in the ledger's first
entry), the secret, the checkpoint, the incarnation; then the steps, each charged before its noise is drawn.
"""

import json
import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curriculumdp.config.changes import without_paths
from curriculumdp.config.config import Config
from curriculumdp.curriculum.central import CentralPhase
from curriculumdp.curriculum.declared import (
    content_digest,
    load_unless_stopped,
    warn_of_repeats,
    with_class_names,
)
from curriculumdp.curriculum.dry_step import dry_step, require_memory
from curriculumdp.curriculum.engine import repeat_to_the_bit
from curriculumdp.curriculum.fingerprint import MECHANISM, fingerprint
from curriculumdp.curriculum.folder import FolderError, RunFolder
from curriculumdp.curriculum.frequency import FrequencyPhase
from curriculumdp.curriculum.initial import initial_state, untrained_state
from curriculumdp.curriculum.plan import Plan, noise_figures
from curriculumdp.curriculum.preemption import PREEMPTED, launcher_is_gone, stop_signal
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.recharge import announce_recharge, consent
from curriculumdp.curriculum.release import publish
from curriculumdp.curriculum.run import FreshIncarnation, Interrupted, OutOfBudget, Phase, Run
from curriculumdp.curriculum.soundness import require_finite, require_sound, ruined
from curriculumdp.curriculum.spent import SpentSoFar, counting_repeats
from curriculumdp.curriculum.state import State
from curriculumdp.curriculum.tracked import tracked
from curriculumdp.curriculum.warmup import WarmupPhase
from curriculumdp.diffusion.sample import SamplingError
from curriculumdp.metrics import Metrics
from curriculumdp.privacy.event import AccountingError
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.release.certificate import CertificateError
from curriculumdp.release.export import ExportError
from curriculumdp.release.signature import SignatureError
from curriculumdp.world import World

PHASE_CLASSES: dict[str, Callable[[Run], Phase]] = {
    "central": CentralPhase,
    "frequency": FrequencyPhase,
    "warmup": WarmupPhase,
    "private": PrivatePhase,
}
# Errors that can stop a release before anything is written to its final path.
UNPUBLISHED = (ExportError, CertificateError, AccountingError, SignatureError, SamplingError)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: `release` is the folder that may leave, or None if the run was preempted."""

    run: Path
    release: Path | None

    @property
    def exit_code(self) -> int:
        return PREEMPTED if self.release is None else 0

    def summary(self) -> str:
        if self.release is None:
            return f"preempted: progress is saved in {self.run}; run the same command again to resume"
        return (
            f"release:  {self.release}\n"
            f"samples:  {self.release / 'samples.png'}\n"
            f"verify:   launch/verify.py {shlex.quote(str(self.release))}"
        )


class Preempted(Exception):
    """SIGTERM arrived or the launcher died: the state is saved and the process should exit with status 143."""


def run_curriculum(
    config: Config,
    world: World,
    *,
    accept_recharge: bool = False,
    secret: RunSecret | None = None,
    nonce: str | None = None,
) -> Outcome:
    """Start or resume the run described by `config`; if it has finished, report where its release is.

    `secret` and `nonce` (see `Run.begin`) are for tests that need the same one in two runs; no option sets them.
    Raises one of this package's ValueErrors, with a one-line message, for anything that the user can fix.
    """
    torch.set_num_threads(config.compute.threads)
    if world.device.type == "cuda":
        repeat_to_the_bit()  # before the warm-up: cuBLAS reads its setting once, at its first use in a process
    folder = RunFolder(Path(config.run_dir))
    with ExitStack() as stack:
        world.require_equal("the config", common_options(config))
        if world.from_main(lambda: b"sealed" if folder.claim(stack, config) else b""):
            world.from_main(lambda: publish_sealed(folder))
            return Outcome(folder.path, folder.release)
        require_memory(config)
        fixed = world.from_main(folder.fixed_names)
        config = with_class_names(config, json.loads(fixed) if fixed else None)
        images = load_unless_stopped(config, world, folder.cache, folder.pending_cache)
        if images is None:
            return Outcome(folder.path, None)
        world.require_equal("the data", content_digest(images))
        config = config if fixed else with_class_names(config, images.class_names)
        state = initial_state(config, world.device)
        # Before the ledger exists: what cannot be trained is refused uncharged.
        dry_step(config, world, state, PHASE_CLASSES)
        size = state.weights.numel()
        record = world.from_main(lambda: folder.open_ledger(stack, config, images, size, secret))
        run = Run(
            config=config,
            plan=Plan.from_record(json.loads(record)),
            world=world,
            secret=RunSecret.from_bytes(world.from_main(folder.secret_file.read_bytes)),
            images=images,
            ledger=folder.ledger if world.is_main else None,
        )
        restore(run, state, folder)
        facts = fingerprint(config, world)
        world.from_main(lambda: consent(run, state, facts, accept_recharge))
        world.from_main(lambda: folder.accept(config))
        world.from_main(lambda: warn_of_repeats(folder.private, config, images))
        for line in noise_figures(config, run.plan).warnings():
            world.print(f"warning: {line}")
        run.begin(facts, nonce)
        try:
            reason = train(run, state, folder)
        except Preempted:
            return Outcome(folder.path, None)
        if world.any(run.stopping.is_set()):  # in the last step, whose result is saved
            return Outcome(folder.path, None)
        world.from_main(lambda: finish(folder, config, state, reason))
    return Outcome(folder.path, folder.release)


def train(run: Run, state: State, folder: RunFolder) -> str:
    """Train from the position of `state` to the end of the curriculum; return why it ended ("planned" or "budget").

    Raises Preempted, after saving a checkpoint, when asked to stop, and TrainingError where the network is ruined.
    """
    names, every = run.config.curriculum, run.config.checkpoint.every
    with open_metrics(run, state, folder) as metrics, stop_signal(run.stopping):
        while state.phase < len(names):
            phase = PHASE_CLASSES[names[state.phase]](run)
            charged = run.plan.phase(phase.name).event is not None
            require_before(run, state, phase)
            if state.step == 0:
                phase.begin(run, state)
            while state.step < phase.steps:
                if charged:  # the check waits for the GPU: only where it saves ε
                    require_weights(run, state, phase)
                if run.world.any(run.stopping.is_set() or launcher_is_gone()):
                    save(run, phase, state, folder)
                    raise Preempted
                try:
                    figures = phase.step(run, state, state.step)
                except FreshIncarnation:
                    run.world.from_main(lambda: announce_recharge(run, state))
                    run.begin_incarnation(fingerprint(run.config, run.world), "a replayed sum differs")
                    continue
                except OutOfBudget:
                    save(run, phase, state, folder)
                    return "budget"
                except Interrupted:
                    save(run, phase, state, folder)
                    raise Preempted from None
                state.step += 1
                metrics.step(phase.name, state.step, figures)
                if state.step % every == 0 and state.step < phase.steps:
                    save(run, phase, state, folder)
            phase.sync(run, state)
            state.phase, state.step = state.phase + 1, 0
            save(run, phase, state, folder)
    return "planned"


def require_before(run: Run, state: State, phase: Phase) -> None:
    """Raise TrainingError if rank 0's network is already ruined, before `phase` spends anything on it."""

    def check() -> None:
        if state.step == 0:
            require_finite(state, phase.name)
        else:
            require_sound(state, phase.name, run.config.run_dir)

    run.world.from_main(check)


def require_weights(run: Run, state: State, phase: Phase) -> None:
    """Raise TrainingError on every rank if the weights are not finite, before another step is charged.

    It checks the weights alone, so it costs next to nothing; a checkpoint also evaluates the network. Rerunning the
    command stops at the same step, since the steps that lead to it are replayed at no charge.
    """
    if run.world.any(not bool(state.weights.isfinite().all())):
        raise ruined("the weights hold NaN or infinity", state.step, phase.name, run.config.run_dir)


def open_metrics(run: Run, state: State, folder: RunFolder) -> Metrics:
    """Open the progress bar and the logs on rank 0; return metrics that do nothing on the other ranks."""
    if not run.world.is_main:
        return Metrics(None, {}, 0, lambda *_: 0.0)
    logging = run.config.logging
    steps = {phase.name: phase.steps for phase in run.plan.phases}
    done = sum(list(steps.values())[: state.phase]) + state.step
    ledger = folder.ledger
    spent = counting_repeats(
        SpentSoFar(run.plan), run.plan, lambda: sum(event.count for event in ledger.events())
    )
    shown = logging.show_private_metrics, logging.tensorboard
    trackers = tracked(run, steps, folder.private / "trackers")
    return Metrics(folder.private, steps, done, spent, *shown, images_per_step(run), trackers)


def images_per_step(run: Run) -> dict[str, float]:
    """Return how many images the network sees per step on the busiest process; of private steps, the expected."""
    config = run.config
    units = config.private.sample_rate * config.data.units / run.world.size
    found = {"private": units * config.private.draws}
    return found | ({"warmup": float(config.warmup.batch)} if config.warmup is not None else {})


def save(run: Run, phase: Phase, state: State, folder: RunFolder) -> None:
    """Give every rank rank 0's state and write a checkpoint; raise TrainingError rather than save a ruined network."""
    phase.sync(run, state)
    run.world.from_main(lambda: require_sound(state, phase.name, run.config.run_dir))
    run.world.from_main(lambda: folder.save(run.config, state))


def restore(run: Run, state: State, folder: RunFolder) -> None:
    """Load the latest checkpoint, if there is one, and copy rank 0's state to every rank."""
    position: dict[str, Any] = {"phase": 0, "step": 0, "sizes": state.sizes()}
    if run.world.is_main:
        found = folder.latest(lambda text: print(f"warning: {text}", flush=True))
        if found is not None:
            state.load(found[1])
            position |= {"phase": found[0].phase, "step": found[0].step, "sizes": state.sizes()}
    position = json.loads(run.world.from_main(lambda: json.dumps(position).encode()))
    state.phase, state.step = position["phase"], position["step"]
    state.share(run.world, position["sizes"])
    names = run.config.curriculum
    if state.phase == len(names):
        run.world.print("training had finished: only the release is left to write")
    elif state.phase or state.step:
        run.world.print(f"resuming at step {state.step + 1} of the {names[state.phase]} phase")


def common_options(config: Config) -> bytes:
    """Return the options that all ranks must agree on: ranks that split a sample differently would repeat units.

    Paths may differ, as they do between nodes with their own disks.
    """
    return json.dumps([MECHANISM, without_paths(config)], sort_keys=True).encode()


def finish(folder: RunFolder, config: Config, state: State, reason: str) -> None:
    """Seal the run, which erases its secret, then write its release; `publish_sealed` follows a kill in between."""
    folder.seal(reason)
    hand_over(folder, folder.release, config, state)


def publish_sealed(folder: RunFolder) -> None:
    """Write the release of a sealed run if a kill prevented it; do nothing if the release is there and intact.

    Raises FolderError for a release that is damaged or belongs to another run.
    """
    if not os.path.lexists(folder.release):
        hand_over(folder, folder.release, *folder.checkpointed(untrained_state))
    elif problem := folder.release_problem(untrained_state):
        raise FolderError(
            f"{folder.release}: is not the release of the run in {folder.private} ({problem}): move it elsewhere and "
            "run the same command again to write the right one"
        )


def export_run(
    run: Path, out: Path, sign: Path | None, *, end_run: bool = False, license_: str | None = None
) -> Path | None:
    """Write the release of a run to `out`, signed if `sign` names an Ed25519 key, and return `out`.

    With `end_run`, an unfinished run ends here ("operator"). It is sealed only once the complete release lies next to
    `out`, so a bad path, key, disk or accounting ends nothing. The weights are the latest checkpoint's; the certificate
    covers the whole ledger. A run with nothing to export yet is ended all the same, so that its reservation is given
    back: nothing is written, and None is returned. Raises FolderError if there is no run, if there is nothing to export
    yet, or if the run is unfinished and `end_run` is not set.
    """
    folder = RunFolder(run)
    with ExitStack() as stack:
        folder.claim_for_export(stack, end_run)
        if end_run and not folder.has_learnt():
            folder.seal("operator")
            return None
        config, state = folder.checkpointed(untrained_state)
        hand_over(folder, out, config, state, sign, license_)
    return out


def hand_over(
    folder: RunFolder,
    out: Path,
    config: Config,
    state: State,
    sign: Path | None = None,
    license_: str | None = None,
) -> None:
    """Publish to `out`, sealing the run ("operator") if it is not sealed; an error after the seal says so."""
    try:
        publish(
            out,
            config,
            folder.ledger,
            state,
            metrics_shown=folder.metrics_shown,
            sign=sign,
            license_=license_,
            seal=lambda: folder.seal("operator"),
        )
    except UNPUBLISHED as error:
        if folder.ledger.sealed is None:
            raise
        raise ExportError(
            f"the run is sealed ({folder.ledger.sealed}), but its release could not be written to {out}: {error}; "
            "once that is fixed, run the same command again"
        ) from error
