"""What every phase shares: the state that training changes, the run it belongs to, and how it spends.

All of a model's parameters lie in one flat fp32 buffer, in the order of `net.named_parameters()`; the
module's parameters are views of it. The optimiser's moments and the EMA have the same layout, so that a step
of Adam, a checkpoint and a sum over ranks are each one operation on one buffer.
"""

import json
import secrets
import threading
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from curriculumdp.config import Config
from curriculumdp.curriculum.plan import Plan
from curriculumdp.data.images import ImageSet
from curriculumdp.diffusion.networks import UNet2DModel
from curriculumdp.privacy.ledger import BudgetSpent, Ledger, ReplayMismatch
from curriculumdp.privacy.noise import add_noise
from curriculumdp.privacy.randomness import RunSecret
from curriculumdp.privacy.release import Release
from curriculumdp.privacy.replay import ChargedSteps, Stretch
from curriculumdp.world import World


@dataclass(frozen=True)
class CentralImages:
    """Noisy aggregates of the sensitive set: already private, hence public.

    images uint8 [M, C, H, W], labels int64 [M]. M may be 0 (a curriculum without the central stage).
    """

    images: Tensor
    labels: Tensor


@dataclass
class State:
    """What a step changes. The buffers are fp32 [P]; `phase` and `step` say what is done so far."""

    net: UNet2DModel
    weights: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor
    central: CentralImages
    phase: int = 0
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint must hold, by name."""
        return {
            "weights": self.weights,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "ema": self.ema,
            "central_images": self.central.images,
            "central_labels": self.central.labels,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Overwrites the state by a checkpoint's tensors, in place where the network looks at it."""
        for name in ("weights", "exp_avg", "exp_avg_sq", "ema"):
            getattr(self, name).copy_(tensors[name])
        self.central = CentralImages(tensors["central_images"], tensors["central_labels"])

    def share(self, world: World, central: int) -> None:
        """Puts rank 0's buffers on every rank; `central` is the number of central images it has."""
        if not world.is_main:
            images = self.central.images
            self.central = CentralImages(
                images.new_zeros((central, *images.shape[1:])), torch.zeros(central, dtype=torch.int64)
            )
        for tensor in self.tensors().values():
            moved = tensor.to(world.device)
            world.broadcast_(moved)
            tensor.copy_(moved)

    def forget_moments(self) -> None:
        """A new phase starts Adam and the EMA afresh from the weights it is given."""
        self.exp_avg.zero_()
        self.exp_avg_sq.zero_()
        self.ema.copy_(self.weights)


def flat_state(net: UNet2DModel, device: torch.device) -> State:
    """The state of an untrained `net`, whose parameters become views of one flat fp32 buffer."""
    net.to(device)
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    offset = 0
    for parameter in net.parameters():
        size = parameter.numel()
        parameter.data = weights[offset : offset + size].view(parameter.shape)
        offset += size
    zeros = torch.zeros_like(weights)
    config = net.config
    shape = (0, config.in_channels, config.sample_size, config.sample_size)
    none = CentralImages(torch.zeros(shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    return State(net, weights, zeros.clone(), zeros.clone(), weights.clone(), none)


def module_tensors(net: UNet2DModel, flat: Tensor) -> dict[str, Tensor]:
    """`flat` cut into the shapes of `net`'s parameters, by name."""
    parts, offset = {}, 0
    for name, parameter in net.named_parameters():
        parts[name] = flat[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    return parts


class FreshIncarnation(Exception):
    """A replayed sum was not the recorded one: its step must be done again under new keys, and charged."""


class OutOfBudget(Exception):
    """The next release would pass ε: the run ends here."""


@dataclass
class Run:
    """One run as its phases see it. PRIVATE: it holds the images, the secret and (on rank 0) the ledger.

    incarnation: the MAC of its ledger entry, not its number, which a copy of the run folder would share. nonce: this
    process's. replayed: the steps that were charged before this process began, each under the nonce of then.
    """

    config: Config
    plan: Plan
    world: World
    secret: RunSecret
    images: ImageSet
    ledger: Ledger | None = None
    incarnation: str = ""
    nonce: str = ""
    replayed: ChargedSteps = field(default_factory=ChargedSteps)
    stopping: threading.Event = field(default_factory=threading.Event)

    def begin(self, fingerprint: dict[str, Any], nonce: str | None = None) -> None:
        """Begin this process's part of the run, under a fresh nonce of rank 0 for what is not charged yet.

        `nonce` is for tests that need one in two processes.
        """

        def begun() -> bytes:
            assert self.ledger is not None
            self.ledger.begin(fingerprint, nonce or secrets.token_hex(32))
            return self._keys()

        self._take_keys(self.world.from_main(begun))

    def begin_incarnation(self, fingerprint: dict[str, Any], why: str) -> None:
        """Throw all keys away: what was charged is not replayed, and is charged again where it is done again."""

        def begun() -> bytes:
            assert self.ledger is not None
            self.ledger.new_incarnation(fingerprint, why)
            return self._keys()

        self._take_keys(self.world.from_main(begun))

    def _keys(self) -> bytes:
        """What all ranks derive keys from, beside the secret."""
        ledger = self.ledger
        assert ledger is not None
        stretches = [astuple(stretch) for stretch in ledger.charged.stretches]
        return json.dumps([ledger.incarnation_mac, ledger.nonce, stretches]).encode()

    def _take_keys(self, keys: bytes) -> None:
        self.incarnation, self.nonce, stretches = json.loads(keys)
        self.replayed = ChargedSteps([Stretch(*stretch) for stretch in stretches])

    def nonce_of(self, phase: str, step: int) -> str:
        """The nonce of a step: that of the process that charged it, or this one's where nobody has."""
        charged = self.replayed.find(phase, step)
        return self.nonce if charged is None else charged.nonce

    def rows_key(self, phase: str, step: int) -> bytes:
        """The key of a step's Poisson sample."""
        nonce = self.nonce_of(phase, step)
        return self.secret.key("rows", incarnation=self.incarnation, nonce=nonce, phase=phase, step=step)

    def draws_key(self, phase: str, step: int) -> bytes:
        """The key of the draws that belong to single units in a step; the step itself is the draws' counter."""
        nonce = self.nonce_of(phase, step)
        return self.secret.key("draws", incarnation=self.incarnation, nonce=nonce, phase=phase)

    def charge(self, release: Release, step: int, clip_norm: float, total: Tensor) -> bytes:
        """The key of one step's or query's noise: reduce, ledger entry, verdict (D3.4, D4). PRIVATE.

        `total` int64 [P] is this rank's share of the un-noised sum on the grid; it becomes the sum over the ranks, in
        place. No rank can derive the noise before the entry is on rank 0's disk, because its key is made from the
        entry. Raises FreshIncarnation or OutOfBudget, where there is no key and the sum must be thrown away.
        """
        self.world.sum_(total)
        verdict = self.world.from_main(lambda: self._charge(release, step, clip_norm, total))
        if verdict == b"mismatch":
            raise FreshIncarnation(release.name)
        if verdict == b"budget":
            raise OutOfBudget(release.name)
        return verdict

    def release_sum(self, release: Release, step: int, clip_norm: float, mine: Tensor) -> Tensor:
        """The noisy sum of one step or query, int64 [P]: charged first, noise after (D3.4, D4, D3.5).

        `mine` is this rank's share of the un-noised sum on the grid (PRIVATE); it is left as it is.
        """
        total = mine.clone()
        key = self.charge(release, step, clip_norm, total)
        return add_noise(total, release.noise_multiplier, key)

    def _charge(self, release: Release, step: int, clip_norm: float, total: Tensor) -> bytes:
        assert self.ledger is not None
        try:
            entry = self.ledger.charge(
                release.name,
                step,
                sample_rate=release.sample_rate,
                noise_multiplier=release.noise_multiplier,
                clip_norm=clip_norm,
                total=np.ascontiguousarray(total.cpu().numpy()),
            )
        except ReplayMismatch:
            return b"mismatch"
        except BudgetSpent:
            return b"budget"
        nonce = self.nonce_of(release.name, step)
        return self.secret.key("noise", incarnation=self.incarnation, nonce=nonce, entry=entry.hex())


class Phase(Protocol):
    """One stage of the curriculum. It spends only through `Run.charge`, what its plan's row declares."""

    name: str
    steps: int

    def begin(self, run: Run, state: State) -> None:
        """Called before the phase's first step, and not on resume."""

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        """Does one step and returns its PRIVATE figures; `state.step` is advanced by the caller."""

    def sync(self, run: Run, state: State) -> None:
        """Makes every rank's state rank 0's; called before a checkpoint and at the phase's end."""
