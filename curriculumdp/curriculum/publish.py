"""What a run hands over: its state, its ledger and its config made into a release. Everything here is public."""

from pathlib import Path
from typing import Literal, cast

from curriculumdp.certificate import Guarantee, PublicFacts
from curriculumdp.config import Config, without_paths
from curriculumdp.curriculum.central import clip_norm_of
from curriculumdp.curriculum.phase import State, module_tensors
from curriculumdp.export import SampleSettings, certified_releases, export_release
from curriculumdp.privacy.ledger import Ledger


def publish(
    out: Path,
    config: Config,
    ledger: Ledger,
    state: State,
    *,
    metrics_shown: bool,
    sign: Path | None = None,
) -> Path:
    """Writes the release of a sealed run to `out`: the certificate covers the whole ledger, not a checkpoint's share.

    The weights are the EMA. Raises ExportError or CertificateError, with nothing written.
    """
    data, private = config.data, config.private
    clip_norms = {"private": private.clip_norm}
    if config.central is not None:
        clip_norms["central"] = clip_norm_of(config.central, data)
    guarantee = Guarantee(
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        unit=data.unit,
        public=PublicFacts(
            units=data.units,
            classes=data.classes,
            image_shape=(data.channels, data.size, data.size),
            initial_weights=without_paths(config)["init_from"],
        ),
        releases=certified_releases(ledger.releases(), clip_norms),
        stopped=cast('Literal["planned", "budget", "operator"]', ledger.sealed),
        private_metrics_shown=metrics_shown,
    )
    sampling = config.sampling
    return export_release(
        out,
        weights={name: part.detach().cpu() for name, part in module_tensors(state.net, state.ema).items()},
        net_config=dict(state.net.config),
        sigma_data=private.sigma_data,
        guarantee=guarantee,
        config=without_paths(config),
        central=state.central.images,
        samples=SampleSettings(sampling.sampler, sampling.steps, sampling.per_class, config.seed),
        signing_key=sign,
        device=state.ema.device,
    )
