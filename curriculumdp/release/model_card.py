"""The README.md of a release: a Hugging Face model card. PUBLIC."""

import json
from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import Accounting, Guarantee, statement
from curriculumdp.release.files import CENTRAL, FREQUENCY
from curriculumdp.release.terms import license_words

PICTURES = {
    CENTRAL: f"\n`{CENTRAL}` shows the noisy aggregates that training began with.\n",
    FREQUENCY: f"\n`{FREQUENCY}` shows images of a generator fitted to the noisy embedding, which training used too.\n",
}


def model_card(
    name: str,
    guarantee: Guarantee,
    cost: Accounting,
    sampling: tuple[str, int],
    shown: Sequence[str],
    has_null: bool,
    license_: str | None = None,
) -> str:
    """Return the card's text: metadata, how to sample, what is guaranteed and what is not.

    sampling: the release's own (sampler, steps), as samples.png was made. shown: the names of the pictures, besides
    the samples, that the release holds. has_null: the network has one more label, numbered `classes`, for images of any
    class.
    """
    sampler, steps = sampling
    metadata = ModelCardData(
        license=license_,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["differential-privacy", "synthetic-data", "image-generation", "edm"],
    ).to_yaml()
    stated, public = statement(guarantee, cost), guarantee.public
    channels, height, width = public.image_shape
    kind = "grey" if channels == 1 else "RGB"
    rows = "\n".join(
        f"| {row.name} | {row.mechanism} | {row.sample_rate:.6g} | {row.noise_multiplier:.6g} "
        f"| {row.clip_norm:.6g} | {row.count} |"
        for row in guarantee.events
    )
    pictures = "".join(PICTURES[name] for name in shown)
    return str(
        ModelCard(f"""---
{metadata}
---

# {name}

A class-conditional diffusion model of {public.classes} classes of {width}x{height} {kind} images, trained
under differential privacy on images that are not shared.

![samples](samples.png)

One class per row, from label 0 on.
{pictures}
## Sampling

Stock `diffusers`, no other code{_note_on(sampler)}:

```python
import torch
from diffusers import DiffusionPipeline{_imported(sampler)}

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder"){_scheduler(sampler)}
images = pipeline(
    batch_size=8,
    class_labels=[i % {public.classes} for i in range(8)],
    num_inference_steps={steps},
    generator=torch.Generator().manual_seed(0),
).images
```

Always pass `num_inference_steps` (the pipeline's default is a single step, which gives a mean image) and
`class_labels` (0 to {public.classes - 1}). {_unlabelled(public.classes, has_null)}
{_names(public.id2label)}
{license_words(license_)}

## Privacy

**(ε = {rounded_up(guarantee.epsilon)}, δ = {rounded_up(guarantee.delta)})-differential privacy.**

- {stated["guarantee"]}
- {stated["adjacency"]}
- {stated["public"]}
- Conditional on {stated["conditional_on"]}
- Private metrics: {stated["private_metrics"]}
- {stated["stopped"]}
- {stated["scope"]}
- {stated["proof"]}

The events charged, each a clipped sum with noise added:

| event | mechanism | sample rate | noise multiplier | clip norm | count |
|---|---|---|---|---|---|
{rows}

`privacy.json` is the certificate: anyone can recompute ε from its values, and it holds the SHA-256 of every
other file here. With `curriculumdp` installed, `curriculumdp-verify FOLDER` checks both; it needs neither torch nor
this model's libraries. The run's settings are in `training_config.yaml`.

Not here: the real images, and everything private of the run (losses, realised batch sizes, the run's secret).
""")
    )


def _note_on(sampler: str) -> str:
    """Return what the snippet's sampler has to do with the one that samples.png was made with."""
    if sampler in ("dpm", "euler"):
        return ", with the sampler and steps of samples.png"
    return (
        f". samples.png was made with the sampler {sampler}, which only `curriculumdp-sample` has: this is "
        "DPM-Solver instead"
    )


def _imported(sampler: str) -> str:
    return ", EDMEulerScheduler" if sampler == "euler" else ""


def _scheduler(sampler: str) -> str:
    if sampler != "euler":
        return ""
    return "\npipeline.scheduler = EDMEulerScheduler.from_config(pipeline.scheduler.config)"


def _unlabelled(classes: int, has_null: bool) -> str:
    """Return what the stock pipeline does without class labels."""
    drawn = "If omitted, the pipeline draws each image's class at random, from torch's global generator"
    if not has_null:
        return f"{drawn}:\nset its seed with `torch.manual_seed`."
    return (
        f"{drawn};\nlabel {classes} is among them: it means no class, and training under privacy used it too."
    )


def _names(names: tuple[str, ...] | None) -> str:
    """Return the section on the classes' names; a JSON line each, which no name can end."""
    if names is None:
        return ""
    lines = ",\n".join(
        f"  {label}: {json.dumps(name, ensure_ascii=False)}" for label, name in enumerate(names)
    )
    return f"""
The classes' names by label, also in `privacy.json` and, after loading, in `pipeline.unet.config["_id2label"]`:

```python
id2label = {{
{lines},
}}
```
"""
