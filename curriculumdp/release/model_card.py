"""The README.md of a release: a Hugging Face model card. PUBLIC."""

from huggingface_hub import ModelCard, ModelCardData

from curriculumdp.privacy.event import rounded_up
from curriculumdp.release.certificate import Accounting, Guarantee, statement


def model_card(name: str, guarantee: Guarantee, cost: Accounting, steps: int, has_central: bool) -> str:
    """The card's text: metadata, how to sample, what is guaranteed and what is not."""
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["differential-privacy", "synthetic-data", "image-generation", "edm"],
    ).to_yaml()
    said, public = statement(guarantee, cost), guarantee.public
    channels, height, width = public.image_shape
    kind = "grey" if channels == 1 else "RGB"
    rows = "\n".join(
        f"| {row.name} | {row.mechanism} | {row.sample_rate:.6g} | {row.noise_multiplier:.6g} "
        f"| {row.clip_norm:.6g} | {row.count} |"
        for row in guarantee.events
    )
    central = "\n`central.png` shows the noisy aggregates that training began with.\n" if has_central else ""
    return str(
        ModelCard(f"""---
{metadata}
---

# {name}

A class-conditional diffusion model of {public.classes} classes of {width}x{height} {kind} images, trained
under differential privacy on images that stay where they are.

![samples](samples.png)

One class a row.
{central}
## Sampling

Plain `diffusers`, no other code:

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

Always pass `num_inference_steps` (the pipeline's default is one step, which gives a mean image) and
`class_labels` (0 to {public.classes - 1}; left out, the pipeline draws them from torch's global generator).

## Privacy

**(ε = {rounded_up(guarantee.epsilon)}, δ = {rounded_up(guarantee.delta)})-differential privacy.**

- {said["guarantee"]}
- {said["adjacency"]}
- {said["public"]}
- Conditional on this: {said["conditional_on"]}
- Figures without noise: {said["private_metrics"]}
- {said["stopped"]}
- {said["scope"]}
- {said["proof"]}

What was released, all of it noise on clipped sums:

| release | mechanism | sample rate | noise multiplier | clip norm | count |
|---|---|---|---|---|---|
{rows}

`privacy.json` is the certificate: with its figures anyone can recompute ε, and it holds the SHA-256 of every
other file here. `python launch/verify.py FOLDER` of `curriculumdp` does both. The settings of the run are in
`training_config.yaml`.
""")
    )
