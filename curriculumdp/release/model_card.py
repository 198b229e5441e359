"""The README.md of a release: a Hugging Face model card. PUBLIC."""

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import Accounting, Guarantee, statement
from curriculumdp.release.files import CENTRAL, FREQUENCY

PICTURES = {
    CENTRAL: f"\n`{CENTRAL}` shows the noisy aggregates that training began with.\n",
    FREQUENCY: f"\n`{FREQUENCY}` shows images of a generator fitted to the noisy embedding, which training used too.\n",
}


def model_card(name: str, guarantee: Guarantee, cost: Accounting, steps: int, shown: Sequence[str]) -> str:
    """Return the card's text: metadata, how to sample, what is guaranteed and what is not.

    shown: the names of the pictures, besides the samples, that the release holds.
    """
    metadata = ModelCardData(
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

One class per row.
{pictures}
## Sampling

Stock `diffusers`, no other code:

```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
images = pipeline(
    batch_size=8,
    class_labels=[i % {public.classes} for i in range(8)],
    num_inference_steps={steps},
    generator=torch.Generator().manual_seed(0),
).images
```

Always pass `num_inference_steps` (the pipeline's default is a single step, which gives a mean image) and
`class_labels` (0 to {public.classes - 1}; if omitted, the pipeline takes them from torch's global generator).

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
other file here. `python launch/verify.py FOLDER` of `curriculumdp` checks both. The run's settings are in
`training_config.yaml`.
""")
    )
