"""A model of the clip recipes on disk: a folder that loads as a world model by itself.

::

    recipe.json            base, codec, condition, sizes
    net/ or adapter/ ...   the network (``network_files``)
    encoder.safetensors    the condition encoder, if it has weights
    branch.safetensors     the control branch, if there is one
    README.md              the model card
"""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from .branch import ControlBranch, Controlled
from .camera import Camera
from .checkpoint import CONFIG, read_weights, replacing, write_weights
from .chunk import ActionChunk
from .clips import Codec
from .control import Control
from .imagine import ClipWorld
from .instruction import Instruction
from .interfaces import LatentCodec, TextEncoder
from .multiview import Multiview
from .network_files import load_network, load_strictly, save_network, stored
from .references import resolve
from .steering import ConditionNet, Place

logger = logging.getLogger(__name__)

ENCODER, BRANCH = "encoder.safetensors", "branch.safetensors"

Condition = Annotated[
    Camera | Instruction | Multiview | Control | ActionChunk, Field(discriminator="kind")
]


class ClipRecipe(BaseModel):
    """What ``recipe.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["clip"] = "clip"
    backend: Literal["diffusion", "ar"]
    condition: Condition
    base: str = Field(description="module:callable=SOURCE of the network trained from")
    base_fingerprint: str = Field(description="of its weights")
    whole: bool = Field(description="the folder holds all of the network")
    codec: str = Field(description="name under wfm.codecs, or module:callable=ARGUMENT")
    codec_fingerprint: str = ""
    text_encoder: str | None = Field(None, description="name under wfm.text_encoders")
    latents: Literal["video", "image"] = "video"
    frames: int = Field(gt=0, description="frames of a sample, past ones included")
    past_frames: int = Field(gt=0, description="frames that a rollout looks back at")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    fps: float = Field(gt=0, description="frames per second")
    views: tuple[str, ...] = Field((), description="cameras, in the order of their numbers")
    patch: tuple[int, int, int] = Field((1, 2, 2), description="latents per token")
    network_width: int = Field(0, ge=0, description="features of a token")
    steps: int = Field(8, gt=0, description="of the sampler")
    guidance: float = Field(0.0, ge=0, description="x0 = cond + guidance (cond - uncond)")
    temperature: float = Field(1.0, ge=0, description="standard deviation of the first noise")

    def place(self, codec: Codec) -> Place:
        """Return what a condition meets."""
        ct, ch, cw = codec.compression
        return Place(
            compression=(ct if self.latents == "video" else 1, ch, cw),
            size=(self.height, self.width),
            latent_channels=codec.latent_channels if isinstance(codec, LatentCodec) else 0,
            width=self.network_width,
            views=self.views,
        )

    def make_encoder(self, codec: Codec) -> ConditionNet:
        """Return an untrained condition encoder."""
        latent = codec if isinstance(codec, LatentCodec) else None
        return self.condition.encoder(self.place(codec), latent)

    def make_branch(self, network: nn.Module, codec: Codec) -> ControlBranch | None:
        """Return an untrained control branch, if the recipe has one."""
        if not isinstance(self.condition, Control):
            return None
        assert isinstance(codec, LatentCodec)
        return ControlBranch(
            network,
            self.condition.branch,
            hint_channels=len(self.condition.hints) * codec.latent_channels,
            patch=self.patch,
        )

    def world_json(self) -> dict[str, object]:
        """Return what the base package notes about a world model of its own."""
        return {
            "codec": self.codec,
            "codec_fingerprint": self.codec_fingerprint,
            "latents": self.latents,
            "past_frames": self.past_frames,
            "frames": self.frames - self.past_frames,
            "height": self.height,
            "width": self.width,
            "fps": self.fps,
            "text_encoder": self.text_encoder,
        }


def save_clip_model(
    folder: str | Path,
    recipe: ClipRecipe,
    model: nn.ModuleDict,
    added: list[str],
    *,
    card: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the folder, whole or not at all. ``model`` has network, encoder and maybe branch."""
    with replacing(folder) as partial:
        partial.mkdir()
        save_network(
            partial, model["network"], base=recipe.base, added=added, whole=recipe.whole,
            world=recipe.world_json(), dtype=dtype,
        )  # fmt: skip
        if state := model["encoder"].state_dict():
            write_weights(partial / ENCODER, state)
        if "branch" in model:
            weights = {k: stored(w, dtype) for k, w in model["branch"].state_dict().items()}
            write_weights(partial / BRANCH, weights)
        (partial / CONFIG).write_text(recipe.model_dump_json(indent=2) + "\n")
        (partial / "README.md").write_text(card)


def load_clip_model(
    folder: Path, recipe: ClipRecipe, codec: Codec, *, merged: bool = True
) -> tuple[nn.ModuleDict, Any]:
    """Undo :func:`save_clip_model`; return the parts, and what denoises or scores tokens.

    Raises:
        ValueError: a part that does not fit.
    """
    network = load_network(
        folder, base=recipe.base, base_fingerprint=recipe.base_fingerprint,
        channels=recipe.condition.channels, merged=merged,
    )  # fmt: skip
    model = nn.ModuleDict({"network": network, "encoder": recipe.make_encoder(codec)})
    parts = {"encoder": ENCODER}
    if (branch := recipe.make_branch(network, codec)) is not None:
        model["branch"], parts["branch"] = branch, BRANCH
    for name, file in parts.items():
        wanted = list(model[name].state_dict())
        if wanted:
            count = load_strictly(model[name], read_weights(folder / file), wanted, file)
            logger.info("%s: %d/%d keys loaded", folder / file, count, len(wanted))
    return model, steered(model)


def steered(model: nn.ModuleDict) -> Any:
    """Return the network, with its control branch around it if there is one."""
    network = model["network"]
    return Controlled(network, [model["branch"]]) if "branch" in model else network  # ty: ignore[invalid-argument-type]


def make_clip_world(
    recipe: ClipRecipe, denoiser: Any, encoder: ConditionNet, codec: Codec
) -> ClipWorld:
    """Put a world model together."""
    return ClipWorld(
        denoiser, codec, encoder, recipe.condition, recipe.place(codec),
        text_encoder=load_text_encoder(recipe.text_encoder), past_frames=recipe.past_frames,
        frames=recipe.frames, fps=recipe.fps, steps=recipe.steps, guidance=recipe.guidance,
        temperature=recipe.temperature,
    )  # fmt: skip


def load_text_encoder(reference: str | None) -> TextEncoder | None:
    """Make the text encoder that a reference names.

    Raises:
        ValueError: the reference cannot be resolved, or is no text encoder.
    """
    if reference is None:
        return None
    found = resolve(reference, "wfm.text_encoders")
    if not isinstance(found, TextEncoder):
        raise ValueError(f"{reference}: gives a {type(found).__name__}, not a text encoder")
    return found
