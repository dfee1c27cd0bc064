"""A post-trained model on disk: a folder that loads as a world model by itself.

::

    recipe.json            which network, world and codec it belongs to
    net/                   the fine-tuned network, in the base package's own layout
    encoder.safetensors    the condition encoder
    README.md              the model card
"""

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from .checkpoint import CONFIG, find_source, read_weights, replacing, write_weights
from .clip_recipe import ClipRecipe, load_clip_model, make_clip_world
from .clips import Codec
from .encoder import ActionEncoder, ActionTokens
from .interfaces import (
    ConditionEncoder,
    DiscreteCodec,
    Fingerprinted,
    LatentCodec,
    WorldModel,
)
from .network_files import load_network, save_network
from .references import resolve
from .settings import explain
from .steering import ConditionNet

logger = logging.getLogger(__name__)

ENCODER = "encoder.safetensors"


class Recipe(BaseModel):
    """What ``recipe.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["action"] = "action"
    backend: Literal["diffusion", "ar"]
    network: str = Field(description="module:callable that loads the folder net/")
    world: str = Field(description="module:callable that makes a WorldModel of the parts")
    codec: str = Field(description="name under wfm.codecs, or module:callable=ARGUMENT")
    codec_fingerprint: str = Field("", description="of the codec trained with; empty: unknown")
    past_frames: int = Field(gt=0, description="frames that a prediction looks at")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    fps: float = Field(gt=0, description="frames, and actions, per second")
    action_dim: int = Field(gt=0, description="numbers in an action")
    encoder_width: int = Field(gt=0, description="features that the encoder gives")
    options: dict[str, float | int | str] = Field(
        {}, description="further keywords of the world, such as the temperature"
    )

    def make_encoder(self) -> ActionEncoder | ActionTokens:
        """Return an untrained encoder of the right sizes."""
        kind = ActionEncoder if self.backend == "diffusion" else ActionTokens
        return kind(self.action_dim, self.encoder_width)

    def world_json(self) -> dict[str, object]:
        """Return what the base package notes about a world model of its own."""
        return {
            "codec": self.codec,
            "codec_fingerprint": self.codec_fingerprint,
            "latents": "image",
            "past_frames": self.past_frames,
            "frames": 1,
            "height": self.height,
            "width": self.width,
            "fps": self.fps,
            "text_encoder": None,
            "conditions": ["action"],
        }


SAVED: TypeAdapter[Recipe | ClipRecipe] = TypeAdapter(
    Annotated[Recipe | ClipRecipe, Field(discriminator="kind")]
)


def load(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    codec: Codec | None = None,
) -> WorldModel:
    """Load a post-trained world model from a folder, ``builtin:NAME`` or ``owner/name``.

    The base package and the codec that it was trained with are found by late binding, so both
    must be installed. ``codec`` takes the place of the recipe's.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the folder holds something else, or the codec is another one.
    """
    folder, recipe = read_recipe(source)
    codec = codec or load_codec(recipe.codec)
    check_codec(codec, recipe.codec_fingerprint, str(source))
    if isinstance(recipe, Recipe):
        network = load_network(folder, base=recipe.network, base_fingerprint="", channels=0)
        encoder: nn.Module = read_encoder(source)
        parts, denoiser = nn.ModuleDict({"network": network, "encoder": encoder}), network
    else:
        parts, denoiser = load_clip_model(folder, recipe, codec)
        encoder = parts["encoder"]
    for part in (parts, codec):
        if isinstance(part, nn.Module):
            part.to(device=device, dtype=dtype).eval()
    if isinstance(recipe, Recipe):
        return make_world(recipe, denoiser, codec, cast(ConditionEncoder, encoder))
    return make_clip_world(recipe, denoiser, cast(ConditionNet, encoder), codec)


def open_world(reference: str, *, device: str = "cpu") -> WorldModel:
    """Load a world model from where :func:`load` finds one, or by late binding.

    A name under ``wfm.world_models`` and ``module:callable=ARGUMENT`` also give world models of
    other packages.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the reference cannot be resolved, or gives something else.
    """
    if reference.startswith("builtin:") or "/" in reference or Path(reference).is_dir():
        return load(reference, device=device)
    world = resolve(reference, "wfm.world_models")
    if not isinstance(world, WorldModel):
        raise ValueError(f"{reference}: gives a {type(world).__name__}, not a world model")
    return world


def read_recipe(source: str | Path) -> tuple[Path, Recipe | ClipRecipe]:
    """Find a saved recipe; return its folder and what it says.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no recipe in it, or a damaged one.
    """
    folder = find_source(source)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a post-trained model, it holds no {CONFIG}")
    try:
        return folder, SAVED.validate_json((folder / CONFIG).read_text())
    except ValidationError as e:
        raise ValueError(f"{folder / CONFIG}: {explain(e)}") from e


def read_encoder(source: str | Path) -> ActionEncoder | ActionTokens:
    """Load the condition encoder of a saved recipe.

    Raises:
        FileNotFoundError: no such folder, or no encoder in it.
        ValueError: not a recipe, or an encoder of other sizes.
    """
    folder, recipe = read_recipe(source)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{source}: follows {recipe.condition.kind}, not single actions")
    encoder = recipe.make_encoder()
    weights = {name: w.float() for name, w in read_weights(folder / ENCODER).items()}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as e:
        raise ValueError(f"{folder / ENCODER}: does not fit {CONFIG} ({e})") from e
    return encoder.eval()


def save(
    folder: str | Path,
    recipe: Recipe,
    network: nn.Module,
    encoder: nn.Module,
    *,
    card: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the folder, whole or not at all; weights are stored as ``dtype``."""
    with replacing(folder) as partial:
        partial.mkdir()
        save_network(
            partial, network, base=recipe.network, added=(), whole=True,
            world=recipe.world_json(), dtype=dtype,
        )  # fmt: skip
        write_weights(partial / ENCODER, encoder.state_dict())
        (partial / CONFIG).write_text(recipe.model_dump_json(indent=2) + "\n")
        (partial / "README.md").write_text(card)


def make_world(
    recipe: Recipe, network: object, codec: Codec, encoder: ConditionEncoder
) -> WorldModel:
    """Put a world model of the base package together.

    Raises:
        ValueError: the recipe's world cannot be found, or is no WorldModel.
    """
    make = locate(recipe.world)
    world = make(network, codec=codec, condition_encoder=encoder, **recipe.options)
    if not isinstance(world, WorldModel):
        raise ValueError(f"{recipe.world}: gives a {type(world).__name__}, not a WorldModel")
    return world


def load_codec(reference: str) -> Codec:
    """Make the codec that a reference names.

    Raises:
        ValueError: the reference cannot be resolved, or is no codec.
    """
    codec = resolve(reference, "wfm.codecs")
    if not isinstance(codec, LatentCodec | DiscreteCodec):
        raise ValueError(f"{reference}: gives a {type(codec).__name__}, not a codec")
    return codec


def codec_fingerprint(codec: object) -> str:
    """Return a codec's fingerprint, or nothing if it offers none."""
    return codec.fingerprint if isinstance(codec, Fingerprinted) else ""


def check_codec(codec: object, wanted: str, what: str) -> None:
    """Refuse a codec other than the one trained with.

    Raises:
        ValueError: names both fingerprints.
    """
    found = codec_fingerprint(codec)
    if wanted and found and wanted != found:
        raise ValueError(f"{what}: was trained with codec {wanted}, this one is {found}")


def locate(reference: str) -> Callable[..., Any]:
    """Import the callable that ``module:callable`` names, without calling it.

    Raises:
        ValueError: it is not there.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"{reference}: cannot import {attribute} from {module} ({e})") from e


def pico_arm_diffusion() -> WorldModel:
    """Load the built-in diffusion model of an arm that pushes objects."""
    return load("builtin:pico-arm-diffusion")


def pico_arm_ar() -> WorldModel:
    """Load the built-in autoregressive model of an arm that pushes objects."""
    return load("builtin:pico-arm-ar")
