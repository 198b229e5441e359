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

EMBEDDING = "class_embedding.weight"


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
            id2label=data.class_names,
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


def weights_of(config: Config, state: State) -> dict[str, Tensor]:
    """Return the weights to release: the EMA, by parameter name, on the CPU.

    The null class is left out unless DP-SGD trained it: stock diffusers draws from all classes if it is given none.
    """
    weights = {name: part.detach().cpu() for name, part in module_tensors(state.net, state.ema).items()}
    return weights | {EMBEDDING: weights[EMBEDDING][: classes_of(config)]}


def classes_of(config: Config) -> int:
    """Return how many classes a release has, with the null class that DP-SGD trained, if it did."""
    trained = "private" in config.curriculum and config.private.label_dropout > 0
    return config.data.classes + int(trained)


def publish(
    out: Path,
    config: Config,
    ledger: Ledger,
    state: State,
    *,
    metrics_shown: bool,
    sign: Path | None = None,
    license_: str | None = None,
    seal: Callable[[], object] = lambda: None,
) -> Path:
    """Write the release of a run to `out` and return its path; sign it if `sign` names an Ed25519 key.

    license_: what the model card states.

    `seal` is called once the complete release lies next to `out`, so any other error comes before it.
    Raises ExportError or CertificateError, with nothing written.
    """
    sampling = config.sampling
    return export_release(
        out,
        weights=weights_of(config, state),
        net_config={**state.net.config, "num_class_embeds": classes_of(config)},
        sigma_data=config.private.sigma_data,
        guarantee=guarantee_of(config, ledger, metrics_shown),
        config=without_paths(config),
        central=state.central.images,
        frequency=state.frequency.images,
        samples=SampleSettings(sampling.sampler, sampling.steps, sampling.per_class, config.seed),
        signing_key=sign,
        license_=license_,
        device=state.ema.device,
        before_publishing=seal,
    )
