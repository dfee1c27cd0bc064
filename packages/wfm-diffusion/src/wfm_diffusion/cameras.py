"""Several cameras' videos of one scene, with a prompt for each camera."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .guidance import Guided
from .samplers import Progress, SamplerName
from .world import WorldModel, cooled

CAMERAS = ("front", "left", "right", "back", "back_left", "back_right")
"""The order of the cameras in Cosmos 1.0's Sample-AV-Multiview."""


@torch.no_grad()
def imagine_cameras(  # noqa: PLR0913  what text2world takes
    world: WorldModel,
    prompts: Sequence[str],
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | int | None = None,
    sampler: SamplerName | None = None,
    fps: float | int | None = None,
    frame_repeat: Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Float[Tensor, "v 3 t h w"]:
    """Imagine one scene as every camera sees it; the prompts are in the cameras' order.

    Guidance leads away from no text at all, as in the release. ``frame_repeat`` says how often
    each camera's frame is repeated, in tens; the release's is ``(0, 0, 0, 0, 1, 1)``.

    Raises:
        ValueError: a network of one camera, or more prompts than cameras.
        Refused: a guard refuses a prompt or a video.
    """
    net, s, views = world.net, world.settings, len(prompts)
    if not 0 < views <= net.config.views:
        raise ValueError(f"{views} prompts; the network has {net.config.views} cameras")
    if frame_repeat is not None and (len(frame_repeat) != views or not net.config.frame_repeat):
        raise ValueError("frame_repeat: the network takes none, or wants one for each camera")
    cond, uncond = (dict(x or {}) for x in world.branches(prompts, views, None, fps))
    device = net.embed.weight.device
    common: dict[str, Tensor] = {
        "fps": cond["fps"][:1],
        "view": torch.arange(views, device=device)[None],
    }
    if frame_repeat is not None:
        common["frame_repeat"] = torch.tensor([list(frame_repeat)], device=device)
    cond, uncond = (
        {**common, "text": rearrange(x["text"], "v n d -> 1 (v n) d")} for x in (cond, uncond)
    )
    total = frames or s.past_frames + s.frames
    c, t, h, w = world.latent_shape(total, height or s.height, width or s.width)
    noise = torch.randn(1, c, views * t, h, w, generator=torch.Generator().manual_seed(seed))
    noise = cooled(noise, world.temperature)
    value = world.guidance if guidance is None else guidance
    guided = Guided(net, cond, uncond, guidance=float(value))
    latents = world.sample(guided, noise, steps, sampler, progress)
    videos = world.decode(rearrange(latents, "1 c (v t) h w -> v c t h w", v=views))
    return world.show(videos[:, :, :total])
