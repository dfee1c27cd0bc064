"""World models and decoders by name: a network with the parts that its ``world.json`` names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load
from .config import WorldSettings
from .decoder import DiffusionDecoder
from .interfaces import ConditionEncoder, LatentCodec, TextEncoder
from .quantised import quantise
from .references import resolve
from .shortcuts import Shortcuts
from .world import WorldModel


def load_world(
    source: str | Path,
    *,
    codec: LatentCodec | str | None = None,
    text_encoder: TextEncoder | str | None = None,
    condition_encoder: ConditionEncoder | str | None = None,
    guard: object | Sequence[object] | None = None,
    device: str = "cpu",
    shortcuts: Shortcuts | None = None,
) -> WorldModel:
    """Load a world model with the codec and the text encoder that its ``world.json`` names.

    A part may also be given, as an object, a registered name or ``module:callable``.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a part that is not installed, is none, or is not the one trained with.
    """
    net = load(source, device=device)
    settings = net.world or WorldSettings()
    codec = codec or settings.codec
    if not codec:
        raise ValueError(f"{source}: has no world.json that names a codec; give one")
    parts = (
        _part(codec, "wfm.codecs", LatentCodec, device),
        _part(text_encoder or settings.text_encoder, "wfm.text_encoders", TextEncoder, device),
        _part(condition_encoder, "wfm.condition_encoders", ConditionEncoder, device),
    )
    if shortcuts is not None and shortcuts.weights is not None:
        quantise(net.blocks, shortcuts.weights)
    return WorldModel(net, *parts, guard, shortcuts=shortcuts)


def _part(part: object, group: str, contract: type, device: str) -> Any:
    """Resolve a part that is given by name, check that it is one, bring it to the device."""
    if isinstance(part, str):
        name, part = part, resolve(part, group)
        if not isinstance(part, contract):
            raise ValueError(f"{name}: gives a {type(part).__name__}, not a {contract.__name__}")
    return part.to(device) if isinstance(part, torch.nn.Module) else part


def load_decoder(
    source: str | Path, *, prompt: str | None = None, device: str = "cpu"
) -> DiffusionDecoder:
    """Load a decoder with the codec and the text encoder that its ``world.json`` names.

    Usable as a reference: ``wfm_diffusion:load_decoder=FOLDER``. ``prompt``: what the clips
    show; without one the network is told nothing, as a part of its training clips were.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: no token network, or a part that is not installed or not the one trained with.
    """
    net = load(source, device=device)
    settings = net.world or WorldSettings()
    if not settings.codec:
        raise ValueError(f"{source}: has no world.json that names a codec")
    codec = _part(settings.codec, "wfm.codecs", LatentCodec, device)
    encoder = _part(settings.text_encoder, "wfm.text_encoders", TextEncoder, device)
    return DiffusionDecoder(
        net, codec, encoder, prompt=prompt, steps=settings.steps, guidance=settings.guidance
    )


def pico_token_decoder() -> DiffusionDecoder:
    """Load the token decoder that ships with this package, with its codec and text encoder.

    Raises:
        FileNotFoundError: this build ships none.
    """
    return load_decoder("builtin:pico-decoder")


def pico_world_model() -> WorldModel:
    """Load the world model that ships with this package, with its codec and text encoder."""
    return load_world("builtin:pico")
