"""One run, from config to release: the same command begins it, goes on with it, and says where it ended.

The order of things is what privacy rests on: the lock, the config, the data and the plan (solved once, kept in the
ledger's first entry), the secret, the checkpoint, the incarnation; then steps, each charged before its noise.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from curriculumdp.config.changes import without_paths
from curriculumdp.config.config import Config
from curriculumdp.curriculum.central import CentralPhase
from curriculumdp.curriculum.dry_step import dry_step, require_memory
from curriculumdp.curriculum.engine import repeat_to_the_bit
from curriculumdp.curriculum.fingerprint import MECHANISM, fingerprint
from curriculumdp.curriculum.folder import FolderError, RunFolder
from curriculumdp.curriculum.plan import Plan
from curriculumdp.curriculum.preemption import launcher_is_gone, stop_signal
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.release import publish
from curriculumdp.curriculum.run import FreshIncarnation, OutOfBudget, Phase, Run
from curriculumdp.curriculum.soundness import require_finite, require_sound, ruined
from curriculumdp.curriculum.spent import SpentSoFar, counting_repeats
from curriculumdp.curriculum.state import State, flat_state
from curriculumdp.curriculum.warmup import WarmupPhase, public_seed
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images
from curriculumdp.diffusion.networks import build_unet, check_trainable, load_public_weights
from curriculumdp.diffusion.sample import SamplingError
from curriculumdp.metrics import Metrics
from curriculumdp.privacy.event import AccountingError
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.release.certificate import CertificateError
from curriculumdp.release.export import ExportError
from curriculumdp.release.signature import SignatureError
from curriculumdp.world import World

PHASES: dict[str, Callable[[Run], Phase]] = {
    "central": CentralPhase,
    "warmup": WarmupPhase,
    "private": PrivatePhase,
}
# By which errors a release is refused before anything of it is at its place.
UNPUBLISHED = (ExportError, CertificateError, AccountingError, SignatureError, SamplingError)
PREEMPTED = 143  # 128 + SIGTERM: what a scheduler takes for "stopped as asked"


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
            return f"stopped as asked, everything is saved: run the same command again to go on ({self.run})"
        return (
            f"release:  {self.release}\n"
            f"samples:  {self.release / 'samples.png'}\n"
            f"check it: python launch/verify.py {self.release}"
        )


class Preempted(Exception):
    """SIGTERM came, or the launcher died: the state is saved and the process is to end with 143."""


def run_curriculum(
    config: Config, world: World, *, secret: RunSecret | None = None, nonce: str | None = None
) -> Outcome:
    """Begins, goes on with, or points to the end of the run that `config` describes.

    `secret` and `nonce` (`Run.begin`) are for tests that need one of them in two runs; no option sets them. Raises
    a ValueError of this package, one line, for whatever a user can mend.
    """
    torch.set_num_threads(config.compute.threads)
    if world.device.type == "cuda":
        repeat_to_the_bit()  # before the warm-up: cuBLAS reads its setting at its first use in a process
    folder = RunFolder(Path(config.run_dir))
    with ExitStack() as stack:
        stopping = stack.enter_context(stop_signal())
        world.require_equal("the config", common_options(config))
        if world.from_main(lambda: b"sealed" if folder.claim(stack, config) else b""):
            world.from_main(lambda: publish_sealed(folder))
            return Outcome(folder.path, folder.release)
        require_memory(config)
        kept = (folder.cache, folder.pending_cache) if world.is_main else (None, None)
        images = load_declared(config, *kept)
        world.require_equal("the data", content_digest(images))
        state = initial_state(config, world.device)
        dry_step(config, world, state)  # before the ledger: what cannot be trained is refused uncharged
        size = state.weights.numel()
        record = world.from_main(lambda: folder.open_ledger(stack, config, images, size, secret))
        run = Run(
            config=config,
            plan=Plan.from_record(json.loads(record)),
            world=world,
            secret=RunSecret.from_bytes(world.from_main(folder.secret_file.read_bytes)),
            images=images,
            ledger=folder.ledger if world.is_main else None,
            stopping=stopping,
        )
        restore(run, state, folder)
        world.from_main(lambda: folder.accept(config))
        run.begin(fingerprint(config, world), nonce)
        try:
            reason = train(run, state, folder)
        except Preempted:
            return Outcome(folder.path, None)
        world.from_main(lambda: finish(folder, config, state, reason))
    return Outcome(folder.path, folder.release)


def train(run: Run, state: State, folder: RunFolder) -> str:
    """Runs what is left of the curriculum from where `state` is; returns why it ended ("planned" or "budget").

    Raises Preempted once everything is saved.
    """
    names, every = run.config.curriculum, run.config.checkpoint.every
    with open_metrics(run, state, folder) as metrics:
        while state.phase < len(names):
            phase = PHASES[names[state.phase]](run)
            require_before(run, state, phase)
            if state.step == 0:
                phase.begin(run, state)
            while state.step < phase.steps:
                require_weights(run, state, phase)
                if run.world.any(run.stopping.is_set() or launcher_is_gone()):
                    save(run, phase, state, folder)
                    raise Preempted
                try:
                    figures = phase.step(run, state, state.step)
                except FreshIncarnation:
                    run.begin_incarnation(fingerprint(run.config, run.world), "a replayed sum differs")
                    continue
                except OutOfBudget:
                    save(run, phase, state, folder)
                    return "budget"
                state.step += 1
                metrics.step(phase.name, state.step, figures)
                if state.step % every == 0 and state.step < phase.steps:
                    save(run, phase, state, folder)
            phase.sync(run, state)
            state.phase, state.step = state.phase + 1, 0
            save(run, phase, state, folder)
    return "planned"


def require_before(run: Run, state: State, phase: Phase) -> None:
    """Raises TrainingError, by rank 0's state, where `phase` would spend on a network that is ruined already."""

    def check() -> None:
        if state.step == 0:
            require_finite(state, phase.name)
        else:
            require_sound(state, phase.name, run.config.run_dir)

    run.world.from_main(check)


def require_weights(run: Run, state: State, phase: Phase) -> None:
    """Raises TrainingError on every rank before a step that weights which are no numbers would be charged for.

    A look at the weights alone, so that it costs next to nothing: a checkpoint asks the network too. It stops at the
    same step however often the same command is run again, since what leads there is replayed and charged nothing.
    """
    if run.world.any(not bool(state.weights.isfinite().all())):
        raise ruined("the weights hold NaN or infinity", state.step, phase.name, run.config.run_dir)


def open_metrics(run: Run, state: State, folder: RunFolder) -> Metrics:
    """The bar and logs of this leg, on rank 0."""
    if not run.world.is_main:
        return Metrics(None, {}, 0, lambda *_: 0.0)
    logging = run.config.logging
    steps = {phase.name: phase.steps for phase in run.plan.phases}
    done = sum(list(steps.values())[: state.phase]) + state.step
    ledger = folder.ledger
    spent = counting_repeats(
        SpentSoFar(run.plan), run.plan, lambda: sum(release.count for release in ledger.events())
    )
    return Metrics(folder.private, steps, done, spent, logging.show_private_metrics, logging.tensorboard)


def save(run: Run, phase: Phase, state: State, folder: RunFolder) -> None:
    """A checkpoint, once every rank has rank 0's state; raises TrainingError rather than save a ruined network."""
    phase.sync(run, state)
    run.world.from_main(lambda: require_sound(state, phase.name, run.config.run_dir))
    run.world.from_main(lambda: folder.save(run.config, state))


def restore(run: Run, state: State, folder: RunFolder) -> None:
    """Puts the latest checkpoint's state, or the untrained one of rank 0, on every rank."""
    place = {"phase": 0, "step": 0, "central": 0}
    if run.world.is_main:
        found = folder.latest(lambda text: print(f"warning: {text}", flush=True))
        if found is not None:
            state.load(found[1])
            place |= {"phase": found[0].phase, "step": found[0].step, "central": len(state.central.labels)}
    place = json.loads(run.world.from_main(lambda: json.dumps(place).encode()))
    state.phase, state.step = place["phase"], place["step"]
    state.share(run.world, place["central"])
    if state.phase or state.step:
        run.world.print(f"going on after step {state.step} of phase {state.phase + 1}")


def initial_state(config: Config, device: torch.device) -> State:
    """The state of the untrained network, the same for the same config; raises NetworkError."""
    model, data = config.model, config.data
    dropout = config.private.label_dropout + (config.warmup.label_dropout if config.warmup else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(public_seed(config.seed, "weights"))
        net = build_unet(
            model.channels,
            data.size,
            data.channels,
            data.classes,
            null_class=dropout > 0,
            blocks=model.blocks,
            attention=model.attention,
            groups=model.norm_groups,
        )
    if config.init_from is not None:
        load_public_weights(net, Path(config.init_from))
    check_trainable(net)
    return flat_state(net, device)


def load_declared(config: Config, cache: Path | None, pending: Path | None = None) -> ImageSet:
    """PRIVATE: the sensitive set, checked against what the config declares of it."""
    data = config.data
    images = load_images(
        source=data.source,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        units=data.units,
        unit=data.unit,
        path=data.path,
        csv=data.csv,
        roster=data.roster,
        window=data.window,
        cache=cache,
        pending=pending,
    )
    if data.unit == "one image" and images.counts.max() > 1:
        raise DataError(
            "some units own more than one image but data.unit says 'one image': set data.unit to what a unit is, "
            "such as 'all images of one patient'"
        )
    return images


def common_options(config: Config) -> bytes:
    """What all ranks must agree on: two that cut a step's sample otherwise would have some units in it twice.

    Paths may differ, as between nodes with disks of their own.
    """
    return json.dumps([MECHANISM, without_paths(config)], sort_keys=True).encode()


def content_digest(images: ImageSet) -> bytes:
    """SHA-256 of the whole set: PRIVATE, compared between ranks and never written down."""
    digest = hashlib.sha256()
    for array in images.content_arrays().values():
        digest.update(str(array.shape).encode() + array.tobytes())
    return digest.digest()


def finish(folder: RunFolder, config: Config, state: State, reason: str) -> None:
    """Seals the run, which erases its secret, and only then writes its release: killed in between, it goes on here."""
    folder.seal(reason)
    hand_over(folder, folder.release, config, state)


def publish_sealed(folder: RunFolder) -> None:
    """Makes up for what a kill between seal and release left undone; does nothing for a finished run.

    Raises FolderError for a release that is damaged or not this run's.
    """
    if not os.path.lexists(folder.release):
        hand_over(folder, folder.release, *folder.checkpointed(initial_state))
    elif problem := folder.release_problem(initial_state):
        raise FolderError(
            f"{folder.release}: is not the release of the run in {folder.private} ({problem}): move it away and run "
            "the same command again, which writes the run's own"
        )


def export_run(run: Path, out: Path, sign: Path | None, *, end_run: bool = False) -> Path:
    """Writes the release of a run to `out`, signed if `sign` names an Ed25519 key.

    With `end_run` a run that is not finished is ended by this (operator): sealed once the release lies whole beside
    its place, so that a place, a key, a disk or an accounting that fails ends nothing. The weights are the latest
    checkpoint's; the certificate covers the whole ledger. Raises FolderError, one line, where there is no run or
    nothing to export yet, or where the run is not finished and `end_run` is not given.
    """
    folder = RunFolder(run)
    with ExitStack() as stack:
        folder.claim_for_export(stack, end_run)
        config, state = folder.checkpointed(initial_state)
        hand_over(folder, out, config, state, sign)
    return out


def hand_over(folder: RunFolder, out: Path, config: Config, state: State, sign: Path | None = None) -> None:
    """Publish to `out`, sealing the run (operator) if it is not sealed; a failure after the seal is told as such."""
    try:
        publish(
            out,
            config,
            folder.ledger,
            state,
            metrics_shown=folder.metrics_shown,
            sign=sign,
            seal=lambda: folder.seal("operator"),
        )
    except UNPUBLISHED as error:
        if folder.ledger.sealed is None:
            raise
        raise ExportError(
            f"the run is sealed ({folder.ledger.sealed}), but its release was not written to {out}: {error}; "
            "then run the same command again"
        ) from error
