"""The state that training starts from. PUBLIC: it depends on the config alone."""

from pathlib import Path

import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.state import State, flat_state
from curriculumdp.curriculum.warmup import public_seed
from curriculumdp.diffusion.networks import build_unet, check_trainable, load_public_weights


def initial_state(config: Config, device: torch.device) -> State:
    """Return the state that training starts from, the same for the same config; raise NetworkError."""
    state = untrained_state(config, torch.device("cpu"))
    if config.init_from is not None:
        load_public_weights(state.net, Path(config.init_from))
        check_trainable(state.net)
    return flat_state(state.net, device)


def untrained_state(config: Config, device: torch.device) -> State:
    """Return the state of a network with random weights, for a checkpoint to be loaded into; raise NetworkError.

    It reads no file: the weights that a finished run started from may be gone.
    """
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
    check_trainable(net)
    return flat_state(net, device)
