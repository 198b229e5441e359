"""What a run hands over: its state, its ledger and its config made into a release. Everything here is public."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from curriculumdp.config.changes import without_paths
from curriculumdp.config.config import Config
from curriculumdp.curriculum.central import clip_norm_of
from curriculumdp.curriculum.state import State, module_tensors
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release.certificate import Guarantee, PublicFacts
from curriculumdp.release.export import SampleSettings, certified_events, export_release


def guarantee_of(config: Config, ledger: Ledger, metrics_shown: bool) -> Guarantee:
    """Return what the run promises: it covers the whole ledger, not a checkpoint's share.

    A ledger that is not sealed counts as ended by the operator, as it will be when this is published.
    """
    data, private = config.data, config.private
    clip_norms = {"private": private.clip_norm}
    if config.central is not None:
        clip_norms["central"] = clip_norm_of(config.central, data)
    return Guarantee(
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        unit=data.unit,
        public=PublicFacts(
            units=data.units,
            classes=data.classes,
            image_shape=(data.channels, data.size, data.size),
            initial_weights=without_paths(config)["init_from"],
        ),
        events=certified_events(ledger.events(), clip_norms),
        stopped=cast('Literal["planned", "budget", "operator"]', ledger.sealed or "operator"),
        private_metrics_shown=metrics_shown,
    )


def weights_of(state: State) -> dict[str, Tensor]:
    """Return the weights that a release of `state` holds: the EMA."""
    return {name: part.detach().cpu() for name, part in module_tensors(state.net, state.ema).items()}


def publish(
    out: Path,
    config: Config,
    ledger: Ledger,
    state: State,
    *,
    metrics_shown: bool,
    sign: Path | None = None,
    seal: Callable[[], object] = lambda: None,
) -> Path:
    """Writes the release of a run to `out`; `seal` is called when it lies whole beside it, and is the last to fail.

    Raises ExportError or CertificateError, with nothing written.
    """
    sampling = config.sampling
    return export_release(
        out,
        weights=weights_of(state),
        net_config=dict(state.net.config),
        sigma_data=config.private.sigma_data,
        guarantee=guarantee_of(config, ledger, metrics_shown),
        config=without_paths(config),
        central=state.central.images,
        samples=SampleSettings(sampling.sampler, sampling.steps, sampling.per_class, config.seed),
        signing_key=sign,
        device=state.ema.device,
        before_publishing=seal,
    )
