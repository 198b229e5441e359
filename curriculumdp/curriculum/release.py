"""The release of a run, made from its state, its ledger and its config. Everything here is PUBLIC."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from curriculumdp.config.changes import without_paths
from curriculumdp.config.config import Config
from curriculumdp.curriculum.frequency import embedding_of
from curriculumdp.curriculum.state import State, module_tensors
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.release.certificate import Guarantee, PublicEmbedding, PublicFacts
from curriculumdp.release.export import SampleSettings, certified_events, export_release


def guarantee_of(config: Config, ledger: Ledger, metrics_shown: bool) -> Guarantee:
    """Return the guarantee of a run, which covers the whole ledger, not just the part before a checkpoint.

    An unsealed ledger counts as ended by the operator, which it will be once this is published.
    """
    data = config.data
    return Guarantee(
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        unit=data.unit,
        public=PublicFacts(
            units=data.units,
            classes=data.classes,
            image_shape=(data.channels, data.size, data.size),
            initial_weights=without_paths(config)["init_from"],
            embedding=_embedding_of(config),
        ),
        events=certified_events(ledger.events(), ledger.clip_norms()),
        stopped=cast('Literal["planned", "budget", "operator"]', ledger.sealed or "operator"),
        private_metrics_shown=metrics_shown,
    )


def _embedding_of(config: Config) -> PublicEmbedding | None:
    if config.frequency is None:
        return None
    used = embedding_of(config.frequency, config.data, config.seed)
    return PublicEmbedding(features=used.features, bandwidth=used.bandwidth, seed=used.seed)


def weights_of(state: State) -> dict[str, Tensor]:
    """Return the weights to release: the EMA, by parameter name, on the CPU."""
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
    """Write the release of a run to `out` and return its path; sign it if `sign` names an Ed25519 key.

    `seal` is called once the complete release lies next to `out`, so any other error comes before it.
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
        frequency=state.frequency.images,
        samples=SampleSettings(sampling.sampler, sampling.steps, sampling.per_class, config.seed),
        signing_key=sign,
        device=state.ema.device,
        before_publishing=seal,
    )
