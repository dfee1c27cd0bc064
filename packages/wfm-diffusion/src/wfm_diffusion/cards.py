"""What is written beside a trained network: its ``world.json`` and its model card."""

from collections.abc import Mapping

from .config import TrainConfig, WorldSettings
from .interfaces import DiscreteCodec, LatentCodec
from .latents import Latents, fingerprint_of

WORLD = (
    "world model",
    "Text2world and video2world in one network",
    """world = wfm_diffusion.load_world("FOLDER")
video = world.text2world(["a gripper pushes a red cube"])""",
)
DECODER = (
    "decoder",
    "From the tokens of `{tokens}` to video",
    """decoder = wfm_diffusion.load_decoder("FOLDER")
video = decoder.decode(tokens)  # b t h w -> b 3 t h w""",
)
"""Of each kind of network: what it is called, what it does, how it is used."""

GUIDED_STEPS = 16
"""Steps below which guidance by text overshoots: pictures too bright, colours too strong."""


def describe_world(
    config: TrainConfig, data: Latents, codec: LatentCodec, token_codec: DiscreteCodec | None
) -> WorldSettings:
    """Return what the network was trained with, and how it is to be rolled out."""
    given = max(1, min(config.given_max, data.latents.shape[2] - 1))
    past = 1 + (given - 1) * codec.compression[0]
    size = config.sizes[-1]
    frames = size.frames - past
    if config.latents == "image":
        past, frames = max(1, min(config.given_max, size.frames - 1)), 1
    # Tokens say what to show, and need no guidance.
    guidance, steps = 0.0, config.sampling_steps
    if token_codec is None:
        guidance, steps = config.guidance, max(steps, GUIDED_STEPS)
    return WorldSettings(
        codec=config.codec,
        codec_fingerprint=fingerprint_of(codec),
        token_codec=config.token_codec or "",
        token_compression=token_codec.compression if token_codec else (8, 16, 16),
        latents=config.latents,
        past_frames=past,
        frames=frames,
        height=size.height,
        width=size.width,
        fps=float(data.fps.median()),
        text_encoder=config.text_encoder,
        guidance=guidance,
        guidance_given=0.0,
        steps=steps,
        steps_given=config.sampling_steps,
        temperature=config.temperature,
        temperature_given=config.temperature_given,
        sampler=config.sampler,
    )


def write_card(config: TrainConfig, weights: int, validation: Mapping[str, float]) -> str:
    """Return the model card of a run."""
    size = config.sizes[-1]
    kind, what, example = DECODER if config.token_codec else WORLD
    began = f", from `{config.init}` on," if config.init else ""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in validation.items())
    return f"""---
license: apache-2.0
library_name: wfm-diffusion
tags: [world-model, video-generation, diffusion]
---
# A diffusion {kind} of {weights / 1e6:.1f} M weights

{what.format(tokens=config.token_codec)}, {size.frames} frames of {size.height}x{size.width},
{config.latents} latents of `{config.codec}`.

Trained{began} for {config.steps} steps of {config.batch} samples, seed {config.seed},
by `wfm-diffusion train`; `world.json` names the codec and its fingerprint. Weights are a moving
average, float16.

Error on held-out clips, weighted by noise level (0 is perfect, 1 is no better than the mean
at high noise):

| measure | value |
| --- | --- |
{rows}

```python
import wfm_diffusion
{example}
```

It imagines the kind of clips that it was trained on, and nothing else; small things blur.
"""
