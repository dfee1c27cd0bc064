"""Train and evaluate the clip recipes: one engine for camera, text, cameras, hints, actions."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .checkpoint import kept, read_weights, replacing
from .chunk import ActionChunk
from .clip_config import ClipConfig, ClipDenoising, ClipTokens
from .clip_recipe import (
    ClipRecipe,
    load_text_encoder,
    save_clip_model,
    steered,
)
from .clips import open_clips, split
from .fidelity import Fidelity, FidelityConfig, measure
from .fit import AVERAGE, Log, fit, recompute_blocks, start_run
from .imagine import ClipWorld, given_frames, spread
from .imported import Resized
from .interfaces import ClipDataset, DiscreteCodec, LatentCodec, NextTokenModel, TrainableDenoiser
from .lora import inject
from .memory import Memory
from .memory import estimate as count_memory
from .moments import EncodedClips, cameras_of, encode_samples, samples
from .multiview import Multiview
from .network_files import extend, fingerprint, load_strictly, open_base
from .objectives import denoising_loss, token_loss
from .parallel import Ranks, launched
from .saved import codec_fingerprint, load, load_codec

logger = logging.getLogger(__name__)

CHECKED = 64
"""Held-out samples whose loss is looked at during training."""

Progress = Callable[[int, int], None]


def train(
    config: ClipConfig,
    run: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    log: Log | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune, save and evaluate; return the folder of the model, ``run/model``.

    ``run`` gets ``config.json``, ``metrics.jsonl``, ``evaluation.json`` and the checkpoint to
    resume from. A resumed run ends on the same bits as one that was never stopped. Started by
    torchrun, the processes share the training (``parallel``).

    Raises:
        FileExistsError: ``run`` holds a run and ``resume`` was not asked for.
        FileNotFoundError: no such clips.
        ValueError: settings, clips or references that do not fit.
    """
    with launched(device, config.fit.context) as (ranks, here):
        return _Run(config, Path(run), ranks, here).train(resume, log, progress)


def estimate(config: ClipConfig, run: str | Path) -> Memory:
    """Return what a process of this training would hold, on the CPU and without training.

    Encodes the clips into ``run``, as the training itself then need not.
    """
    it = _Run(config, Path(run), Ranks(), "cpu")
    model, _ = it.build()
    data = it.encoded("clips", it.clips, model)
    loss = it.loss(model, data)
    if config.fit.recompute:
        recompute_blocks(model)
    states = 1 if config.fit.optimizer == "muon" else 2
    return count_memory(model, lambda: loss(torch.Generator().manual_seed(0)), states=states)


class _Run:
    """The parts of one training, and its course."""

    def __init__(self, config: ClipConfig, folder: Path, ranks: Ranks, device: str) -> None:
        self.config, self.folder, self.ranks, self.device = config, folder, ranks, device
        self.clips, self.held_out = split(config.clips, config.held_out, config.size)
        self.codec = load_codec(config.backend.codec)
        if isinstance(self.codec, nn.Module):
            self.codec.to(device)
        self.recipe = describe(config, open_base(config.backend.base), self.codec, self.clips)

    def train(self, resume: bool, log: Log | None, progress: Progress | None) -> Path:
        """Train from the last checkpoint, save, evaluate."""
        config, ranks = self.config, self.ranks
        if ranks.first:
            start_run(self.folder, config, resume=resume)
        ranks.wait()
        model, added = self.build()
        if ranks.context > 1 and "branch" in model:
            raise ValueError("a control branch needs whole clips; use fit.context=1")
        with ranks.first_alone():
            data = self.encoded("clips", self.clips, model)
            checked = self.encoded("held_out", self.held_out, model)
        model["encoder"].fit(data.digest)  # ty: ignore[not-callable]
        denoiser = steered(model)
        fit(
            model, self.loss(model, data, denoiser), config.fit, self.folder,
            check=lambda: check(denoiser, model["encoder"], checked, config),
            log=log, progress=progress if ranks.first else None, ranks=ranks,
        )  # fmt: skip
        with ranks.first_alone():
            if ranks.first:
                if ranks.count > 1:
                    model, added = self.build()
                    average = read_weights(self.folder / AVERAGE)
                    load_strictly(model, average, list(model.state_dict()), AVERAGE)
                self.publish(model, added)
        return self.folder / "model"

    def build(self) -> tuple[nn.ModuleDict, list[str]]:
        """Make the parts anew, as they are before training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.fit.seed)
            network = open_base(self.config.backend.base)
            model, added = assemble(self.recipe, network, self.codec, self.config)
        return model.to(self.device).float(), added

    def loss(
        self, model: nn.ModuleDict, data: EncodedClips, denoiser: Any = None
    ) -> Callable[[torch.Generator], Tensor]:
        """Return the loss of a batch, drawn by a generator."""
        denoiser, config = denoiser or steered(model), self.config

        def loss(generator: torch.Generator) -> Tensor:
            picks = torch.randint(len(data), (config.fit.batch,), generator=generator)
            return clip_loss(denoiser, model["encoder"], data, picks, config, generator)

        return loss

    def encoded(self, part: str, clips: ClipDataset, model: nn.ModuleDict) -> EncodedClips:
        """Encode a part of the clips, or read it back from the run's folder."""
        config, recipe = self.config, self.recipe
        made_of = {
            "condition", "codec", "codec_fingerprint", "text_encoder", "latents", "frames",
            "height", "width", "views",
        }  # fmt: skip
        what = {
            "clips": [config.clips, config.held_out, len(clips)],
            "recipe": recipe.model_dump(mode="json", include=made_of),
        }
        views = recipe.views if config.condition.grouped else None

        def make() -> Mapping[str, Tensor]:
            logger.info("%d %s to encode", len(clips), part)
            encoder: Any = model["encoder"]
            return encode_samples(
                samples(clips, recipe.frames, views=views), self.codec,
                load_text_encoder(recipe.text_encoder), encoder, recipe.condition,
                views=views, alone=recipe.latents == "image", device=self.device,
            ).tensors()  # fmt: skip

        return EncodedClips.of(kept(self.folder / f"{part}.safetensors", what, make))

    def publish(self, model: nn.ModuleDict, added: list[str]) -> None:
        """Save the model, evaluate what was saved, and put the result on its card."""
        config, recipe, folder = self.config, self.recipe, self.folder / "model"
        save_clip_model(folder, recipe, model, added, card=_card(recipe, config, None))
        world = load(folder, device=self.device, codec=self.codec)
        assert isinstance(world, ClipWorld)
        result = evaluate(world, self.held_out, config.evaluation)
        save_clip_model(folder, recipe, model, added, card=_card(recipe, config, result))
        with replacing(self.folder / "evaluation.json") as partial:
            partial.write_text(result.to_json() + "\n")
        logger.info("%s", result.summary())


def describe(config: ClipConfig, network: nn.Module, codec: Any, clips: ClipDataset) -> ClipRecipe:
    """Say what the model will be, from the parts and the data at hand.

    Raises:
        ValueError: parts, settings or clips that do not fit together.
    """
    backend, condition = config.backend, config.condition
    wants = (TrainableDenoiser, LatentCodec), (NextTokenModel, DiscreteCodec)
    kinds = wants[backend.kind == "ar"]
    for part, kind, name in zip(
        (network, codec), kinds, (backend.base, backend.codec), strict=True
    ):
        if not isinstance(part, kind):
            raise ValueError(f"{name}: gives a {type(part).__name__}, not a {kind.__name__}")
    if backend.kind == "ar" and not condition.steers_text:
        raise ValueError(f"{condition.kind}: needs a diffusion model; token models take text only")
    if condition.steers_text and backend.text_encoder is None:
        raise ValueError(f"{condition.kind}: needs backend.text_encoder")
    clip = clips[0]
    height, width = clip.read(0, 1).shape[2:]
    views: tuple[str, ...] = ()
    if isinstance(condition, Multiview):
        views = condition.views or cameras_of(clips)
        condition = condition.model_copy(update={"views": views})
    if isinstance(condition, ActionChunk):
        numbers = condition.read((clip,), 0, min(len(clip), config.frames))["action"].shape[1]
        update = {"numbers": condition.numbers or numbers, "steps": config.frames - 1}
        condition = condition.model_copy(update=update)
    settings: Any = network.config
    dials = {"steps", "guidance", "temperature"}
    sampling = backend.model_dump(include=dials) if isinstance(backend, ClipDenoising) else {}
    recipe = ClipRecipe(
        backend=backend.kind, condition=condition, base=backend.base,
        base_fingerprint=fingerprint(network), whole=_whole(config), codec=backend.codec,
        codec_fingerprint=codec_fingerprint(codec), text_encoder=backend.text_encoder,
        latents=config.latents, frames=config.frames, past_frames=config.past_frames,
        height=height, width=width, fps=clip.fps, views=views,
        patch=getattr(settings, "patch", (1, 1, 1)), network_width=getattr(network, "width", 0),
        **sampling,
    )  # fmt: skip
    place = recipe.place(codec)
    total, past = place.latents(config.frames), place.latents(config.past_frames)
    if not config.given_least <= past < total:
        raise ValueError(
            f"{past} latent frames of {total} are past, and at least {config.given_least} given in "
            "training; past_frames must be fewer than frames, given_least no more than the past"
        )
    return recipe


def assemble(
    recipe: ClipRecipe, network: nn.Module, codec: Any, config: ClipConfig
) -> tuple[nn.ModuleDict, list[str]]:
    """Add the recipe's new layers to the network, and freeze what is not to be trained.

    Returns network, encoder and maybe branch, and the names of the parameters added.
    """
    network.to(torch.float32)
    added = extend(network, recipe.condition.channels)
    if config.lora:
        inject(network, config.lora.targets, rank=config.lora.rank, alpha=config.lora.alpha)
    else:
        choose_trained(network, config)
    for name, weight in network.named_parameters():
        if name in added:
            weight.requires_grad_(True)
    parts: dict[str, nn.Module] = {"network": network, "encoder": recipe.make_encoder(codec)}
    if (branch := recipe.make_branch(network, codec)) is not None:
        parts["branch"] = branch
    return nn.ModuleDict(parts), added


def choose_trained(network: nn.Module, config: ClipConfig) -> None:
    """Freeze all of the network but what the recipe or the user wants trained.

    Raises:
        ValueError: no weight has such a name.
    """
    if config.trained is None:
        network.requires_grad_(not config.condition.freezes)
        return
    chosen = [n for n, _ in network.named_parameters() if re.search(config.trained, n)]
    if not chosen:
        raise ValueError(f"no weight's name matches trained: {config.trained!r}")
    for name, weight in network.named_parameters():
        weight.requires_grad_(name in chosen)


def clip_loss(
    denoiser: Any,
    encoder: Any,
    data: EncodedClips,
    picks: Int64[Tensor, " b"],
    config: ClipConfig,
    generator: torch.Generator,
    *,
    conditions: Int64[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss on some samples, with their own conditions or with those of others."""
    others = picks if conditions is None else conditions
    codes = data.codes[picks]
    total, stride = codes.shape[-3], _stride(config, data)
    past = 1 + (config.past_frames - 1) // stride
    known = torch.randint(config.given_least, past + 1, (len(picks),), generator=generator)
    digest = {
        name: x[picks if name == "view" else others].to(_device(denoiser))
        for name, x in data.digest.items()
    }
    if "action" in digest:
        steps = torch.arange(digest["action"].shape[1]) < stride * (known[:, None] - 1)
        hidden = steps[..., None].to(digest["action"].device)
        digest["action"] = digest["action"].float().masked_fill(hidden, torch.nan)
    digest = {k: x.float() if x.is_floating_point() else x for k, x in digest.items()}
    condition: dict[str, Tensor] = encoder.condition(digest)
    if data.embeddings.shape[1]:
        text = data.text[others if config.condition.steers_text else picks]
        kept = torch.rand(len(picks), 1, 1, 1, generator=generator) >= config.text_dropout
        words = data.embeddings[text].float() * kept
        condition["text"] = rearrange(words, "b v n d -> b (v n) d").to(_device(denoiser))
    backend = config.backend
    if isinstance(backend, ClipTokens):
        window = rearrange(codes, "b 1 t h w -> b t h w")
        new = total - past
        return token_loss(denoiser, window, condition, backend.past_noise, generator, new=new)
    v = codes.shape[1]
    clean = rearrange(codes, "b v c t h w -> b c (v t) h w")
    given = given_frames(known, total, v)[:, None, :, None, None]
    given = given.expand_as(clean[:, :1]).contiguous()
    condition = spread(condition, clean.shape, v)
    condition["fps"] = data.fps[picks].to(_device(denoiser))
    return denoising_loss(denoiser, clean, given, condition, backend, generator)


@torch.no_grad()
def check(denoiser: Any, encoder: Any, data: EncodedClips, config: ClipConfig) -> dict[str, float]:
    """Return the loss on fixed held-out samples, with their own and with others' conditions."""
    picks = torch.linspace(0, len(data) - 1, min(CHECKED, len(data))).long()
    quiet = config.model_copy(update={"text_dropout": 0.0})
    found = {}
    for name, others in (
        ("held_out_loss", picks),
        ("held_out_loss_shuffled", picks.roll(max(len(picks) // 2, 1))),
    ):
        generator = torch.Generator().manual_seed(config.fit.seed)
        value = clip_loss(denoiser, encoder, data, picks, quiet, generator, conditions=others)
        found[name] = value.item()
    found["condition_gap"] = found["held_out_loss_shuffled"] - found["held_out_loss"]
    return found


def evaluate(
    world: ClipWorld, clips: ClipDataset | str, config: FidelityConfig | None = None
) -> Fidelity:
    """Imagine held-out clips with their own and with others' conditions, at the model's size."""
    clips = open_clips(clips) if isinstance(clips, str) else clips
    return measure(world, Resized(clips, world.place.size), config or FidelityConfig())


def _whole(config: ClipConfig) -> bool:
    """Tell whether the network's own weights are trained."""
    return config.lora is None and (config.trained is not None or not config.condition.freezes)


def _stride(config: ClipConfig, data: EncodedClips) -> int:
    """Return how many frames a latent frame covers."""
    return (config.frames - 1) // (data.codes.shape[-3] - 1)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _card(recipe: ClipRecipe, config: ClipConfig, result: Fidelity | None) -> str:
    """Write the model card."""
    kind, views = recipe.condition.kind, ", ".join(recipe.views)
    how = "LoRA adapters" if config.lora else "a control branch" if kind == "control" else "all"
    controls = ", ".join(f'"{name}": ...' for name in recipe.condition.inputs)
    lines = [
        "---\nlicense: apache-2.0\nlibrary_name: wfm-posttrain\ntags: [world-model]\n---",
        f"# World model steered by {kind} ({recipe.backend})",
        f"Imagines {recipe.frames - recipe.past_frames} frames of {recipe.height}x{recipe.width} "
        f"at {recipe.fps:g} Hz after {recipe.past_frames}"
        + (f", of the cameras {views}" if views else "")
        + f". Fine-tuned ({how} trained) from `{recipe.base}` for {config.fit.steps} steps of "
        f"{config.fit.batch} clips, seed {config.fit.seed}; codec `{recipe.codec}`.",
        "```python\nimport wfm_posttrain\nworld = wfm_posttrain.load(FOLDER)\n"
        f"future = world.rollout(past, frames={recipe.frames - recipe.past_frames}, "
        f"controls={{{controls}}}{', prompts=[caption]' if recipe.text_encoder else ''})\n```",
    ]
    if result:
        lines.append(f"On {result.clips} held-out samples:\n\n{result.table()}")
    lines.append(
        "A gap is over the same samples with another's condition. A gap of 0 would mean that the "
        "model ignores its condition. It knows the scenes that it was trained on, and no others."
    )
    return "\n\n".join(lines) + "\n"
