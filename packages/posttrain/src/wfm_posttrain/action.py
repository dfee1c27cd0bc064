"""Next-frame prediction from past frames and a robot's action (Cosmos 1.0, section 6.2).

The network sees a few encoded frames and the action that follows, and predicts the one frame
that comes next; a rollout feeds its prediction back. Every frame is encoded alone, as an
image, so a frame is one latent frame and a step is one action.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from .checkpoint import kept, replacing
from .clips import EncodedFrames, covered_by_objects, encode_frames, open_clips, split
from .encoder import ActionEncoder, ActionTokens, fit_scaling
from .evaluation import Evaluation, EvaluationConfig, evaluate_world
from .fit import Log, fit, start_run
from .imagine import Guided, euler
from .interfaces import ClipDataset, NextTokenModel, TrainableDenoiser, WorldModel
from .lora import inject, merge, save_adapter
from .network_files import ADAPTER, load_network
from .objectives import ArBackend, DiffusionBackend, next_frame_loss
from .references import resolve
from .run_config import RunConfig
from .saved import (
    Recipe,
    check_codec,
    codec_fingerprint,
    load,
    load_codec,
    read_encoder,
    read_recipe,
    save,
)

logger = logging.getLogger(__name__)

__all__ = ["ActionConfig", "ArBackend", "DiffusionBackend", "evaluate", "train"]

CHECKED_WINDOWS = 64
Progress = Callable[[int, int], None]


Backend = Annotated[DiffusionBackend | ArBackend, Field(discriminator="kind")]


class ActionConfig(RunConfig):
    """Fine-tune a base model to follow actions."""

    backend: Backend = DiffusionBackend()
    past_frames: int = Field(2, gt=0, description="frames that a prediction looks at")
    start: str | None = Field(
        None, description="a model of this recipe to go on from, in place of the base: a folder,"
        " builtin:NAME or owner/name; actions are scaled as it has them"
    )  # fmt: skip
    object_weight: float = Field(
        0.0, ge=0, description="how much more an error counts where objects are, which are small:"
        " 1 doubles it (needs the label `segmentation`, and `objects`)"
    )  # fmt: skip
    weighted_parts: tuple[str, ...] = Field(
        (), description="what else `object_weight` is for: names of `segments`, such as gripper"
    )
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _parts_have_a_weight(self) -> "ActionConfig":
        if self.weighted_parts and not self.object_weight:
            raise ValueError("weighted_parts say what object_weight is for; set that, too")
        return self


def train(
    config: ActionConfig,
    run: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    log: Log | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune, save and evaluate; return the folder of the model, ``run/model``.

    ``run`` gets ``config.json``, ``metrics.jsonl``, ``evaluation.json`` and the checkpoint to
    resume from. LoRA adapters are folded into the network; ``model/adapter`` has them for PEFT.
    A resumed run ends on the same bits as one that was never stopped.

    Raises:
        FileExistsError: ``run`` holds a run and ``resume`` was not asked for.
        FileNotFoundError: no such clips.
        ValueError: settings, clips or references that do not fit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("this recipe trains on one process; start it without torchrun")
    run = Path(run)
    clips, held_out = split(config.clips, config.held_out, config.size)
    codec = load_codec(config.backend.codec)
    if isinstance(codec, nn.Module):
        codec.to(device)
    network, trained = _network(config, clips, codec)
    start_run(run, config, resume=resume)
    weights = _place_weights(config, clips, codec, run)
    frames = _encoded(clips, "clips", config, codec, run, device)
    checked = _encoded(held_out, "held_out", config, codec, run, device)
    recipe = _recipe(config, network, codec, clips, frames)
    targets = frames.targets()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.fit.seed)
        encoder = trained or recipe.make_encoder()
        if config.lora:
            inject(network, config.lora.targets, rank=config.lora.rank, alpha=config.lora.alpha)
    if trained is None:
        fit_scaling(encoder, frames.action[targets])
    model = nn.ModuleDict({"network": network, "encoder": encoder}).to(device).float()

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(targets), (config.fit.batch,), generator=generator)
        chosen = targets[picks]
        places = None if weights is None else weights[chosen]
        windows = with_own_past(model, frames, chosen, config, generator)
        return _loss(model, frames, chosen, config, generator, windows, place_weights=places)

    fit(
        model, loss, config.fit, run,
        check=lambda: check(model, checked, config), log=log, progress=progress,
    )  # fmt: skip
    if config.lora:
        save_adapter(run / ADAPTER, network, config.backend.base)
        merge(network)
    folder = _publish(run, config, recipe, model, held_out, codec, device)
    if config.lora:
        shutil.copytree(run / ADAPTER, folder / ADAPTER)
    return folder


def evaluate(
    world: WorldModel, clips: ClipDataset | str, config: EvaluationConfig | None = None
) -> Evaluation:
    """Roll out held-out clips with their own and with others' actions; see ``Evaluation``."""
    clips = open_clips(clips) if isinstance(clips, str) else clips
    return evaluate_world(world, clips, config or EvaluationConfig())


def _network(
    config: ActionConfig, clips: ClipDataset, codec: Any
) -> tuple[Any, ActionEncoder | ActionTokens | None]:
    """Return the network to train, and the trained encoder that belongs to it, if one does."""
    if config.start is None:
        return resolve(config.backend.base, ""), None
    folder, recipe = read_recipe(config.start)
    encoder = read_encoder(folder)
    numbers = clips[0].labels()["action"].shape[-1]
    if (recipe.backend, len(encoder.mean)) != (config.backend.kind, numbers):
        raise ValueError(
            f"{config.start}: a model of backend {recipe.backend} and actions of"
            f" {len(encoder.mean)} numbers; wanted {config.backend.kind} and {numbers}"
        )
    check_codec(codec, recipe.codec_fingerprint, config.start)
    return load_network(folder, base=config.backend.base, base_fingerprint="", channels=0), encoder


def _publish(
    run: Path,
    config: ActionConfig,
    recipe: Recipe,
    model: nn.ModuleDict,
    held_out: ClipDataset,
    codec: Any,
    device: str,
) -> Path:
    """Save the model, evaluate what was saved, and put the result on its card."""
    network, encoder = model["network"], model["encoder"]
    save(run / "model", recipe, network, encoder, card=_card(recipe, config, None))
    result = evaluate(load(run / "model", device=device, codec=codec), held_out, config.evaluation)
    save(run / "model", recipe, network, encoder, card=_card(recipe, config, result))
    with replacing(run / "evaluation.json") as partial:
        partial.write_text(result.to_json() + "\n")
    logger.info("%s", result.summary())
    return run / "model"


@torch.no_grad()
def check(model: nn.ModuleDict, frames: EncodedFrames, config: ActionConfig) -> dict[str, float]:
    """Return the loss on fixed held-out windows, with their own and with others' actions."""
    targets = frames.targets()
    spread = torch.linspace(0, len(targets) - 1, min(CHECKED_WINDOWS, len(targets)))
    targets = targets[spread.long()]
    windows = frames.windows(targets, config.past_frames)
    losses = {}
    actions = frames.action[targets]
    for name, action in (
        ("held_out_loss", actions),
        ("held_out_loss_shuffled", actions.roll(len(targets) // 2, 0)),
    ):
        generator = torch.Generator().manual_seed(config.fit.seed)
        loss = _loss(model, frames, targets, config, generator, windows, action=action)
        losses[name] = loss.item()
    return losses


def _loss(
    model: nn.ModuleDict,
    frames: EncodedFrames,
    targets: Int64[Tensor, " b"],
    config: ActionConfig,
    generator: torch.Generator,
    windows: Shaped[Tensor, "b t ..."],
    *,
    action: Float[Tensor, "b a"] | None = None,
    place_weights: Float[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of predicting the target frames after their own or after other actions."""
    action = frames.action[targets] if action is None else action
    fps = frames.fps[targets]
    return next_frame_loss(
        model, windows, action, fps, config.backend, generator, place_weights=place_weights
    )


@torch.no_grad()
def with_own_past(
    model: nn.ModuleDict,
    frames: EncodedFrames,
    targets: Int64[Tensor, " b"],
    config: ActionConfig,
    generator: torch.Generator,
) -> Shaped[Tensor, "b t ..."]:
    """Return the targets' windows, the past of some as the model itself imagines it.

    It goes on from recorded frames a little earlier, after the recorded actions, and without
    gradients: the pushforward trick of learned PDE solvers, arXiv 2202.03376, section 3.1.
    """
    windows = frames.windows(targets, config.past_frames)
    backend = config.backend
    if not isinstance(backend, DiffusionBackend) or not backend.own_past:
        return windows
    depth = int(torch.randint(1, backend.own_past_frames + 1, (), generator=generator))
    deep = (targets - frames.first[targets] > depth).nonzero()[:, 0]
    rows = deep[: round(backend.own_past * len(targets))]
    start = targets[rows] - depth
    past = frames.windows(start, config.past_frames)[:, :-1].float()
    for number in range(depth) if len(rows) else ():
        now = start + number
        new = _imagine(model, past, frames.action[now], frames.fps[now], backend, generator)
        past = torch.cat([past[:, 1:], new], dim=1)
    windows[rows, :-1] = past.to(windows)
    return windows


def _imagine(
    model: nn.ModuleDict,
    past: Float[Tensor, "b p c h w"],
    action: Float[Tensor, "b a"],
    fps: Float[Tensor, " b"],
    backend: DiffusionBackend,
    generator: torch.Generator,
) -> Float[Tensor, "b 1 c h w"]:
    """Sample the frame after ``past``, as the finished model will."""
    network: Any = model["network"]
    encoder: Any = model["encoder"]
    condition = encoder.encode({"action": action[:, None]})
    device = condition["adaln"].device
    kept = rearrange(past, "b p c h w -> b c p h w").to(device) * network.sigma_data
    kept = F.pad(kept, (0, 0, 0, 0, 0, 1))
    given = torch.ones_like(kept[:, :1])
    given[:, :, -1] = 0
    noise = torch.randn(kept.shape, generator=generator).to(device)
    noise *= float(backend.options.get("temperature", 1.0))
    condition |= {"fps": fps.to(device), "given": given}
    steps = int(backend.options.get("steps", 4))
    guided = Guided(network, condition, text=None, guidance=0.0)
    made = euler(guided, noise, kept, given, steps)[:, :, -1:] / network.sigma_data
    return rearrange(made, "b c 1 h w -> b 1 c h w").to(past)


def _encoded(
    clips: ClipDataset, part: str, config: ActionConfig, codec: Any, run: Path, device: str
) -> EncodedFrames:
    """Encode a part of the clips, or read it back from the run's folder."""
    what = {
        "clips": config.clips,
        "held_out": config.held_out,
        "count": len(clips),
        "codec": codec_fingerprint(codec) or config.backend.codec,
    }
    logger.info("%d %s to encode", len(clips), part)
    found = kept(
        run / f"{part}.safetensors", what, lambda: vars(encode_frames(clips, codec, device=device))
    )
    return EncodedFrames(**found)


def _place_weights(
    config: ActionConfig, clips: ClipDataset, codec: Any, run: Path
) -> Float[Tensor, "n h w"] | None:
    """Return how much the error of each latent of every frame counts: 1, more on objects."""
    if not config.object_weight:
        return None
    height, width = clips[0].read(0, 1).shape[2:]
    size = (height // codec.compression[1], width // codec.compression[2])
    covered = kept(
        run / "objects.safetensors",
        {
            "clips": config.clips, "held_out": config.held_out, "count": len(clips), "size": size,
            "parts": config.weighted_parts,
        },
        lambda: {"covered": covered_by_objects(clips, size, config.weighted_parts)},
    )  # fmt: skip
    return 1 + config.object_weight * covered["covered"]


def _recipe(
    config: ActionConfig, network: Any, codec: Any, clips: ClipDataset, frames: EncodedFrames
) -> Recipe:
    """Say what the model will be, from the parts and the data at hand."""
    backend = config.backend
    clip = clips[0]
    height, width = clip.read(0, 1).shape[2:]
    if isinstance(backend, DiffusionBackend):
        if not isinstance(network, TrainableDenoiser):
            raise ValueError(f"{backend.base}: gives a {type(network).__name__}, not a denoiser")
        encoder_width = network.width
    else:
        if not isinstance(network, NextTokenModel):
            raise ValueError(f"{backend.base}: gives a {type(network).__name__}, no token model")
        encoder_width = backend.context_width or network.config.context_dim
    return Recipe(
        backend=backend.kind,
        network=backend.base.partition("=")[0],
        world=backend.world,
        codec=backend.codec,
        codec_fingerprint=codec_fingerprint(codec),
        past_frames=config.past_frames,
        height=height,
        width=width,
        fps=clip.fps,
        action_dim=frames.action.shape[1],
        encoder_width=encoder_width,
        options=backend.options,
    )


def _card(recipe: Recipe, config: ActionConfig, result: Evaluation | None) -> str:
    """Write the model card."""
    lines = [
        "---\nlicense: apache-2.0\nlibrary_name: wfm-posttrain\ntags: [world-model, robotics]\n---",
        f"# Action-conditioned world model ({recipe.backend})",
        f"Predicts the next {recipe.height}x{recipe.width} frame ({recipe.fps:g} Hz) from "
        f"{recipe.past_frames} past frames and an action of {recipe.action_dim} numbers. "
        f"Fine-tuned from `{config.start or config.backend.base}` for {config.fit.steps} steps of "
        f"{config.fit.batch} windows, seed {config.fit.seed}; codec `{recipe.codec}` "
        f"({recipe.codec_fingerprint or 'no fingerprint'}).",
        "```python\nimport wfm_posttrain\nworld = wfm_posttrain.load(FOLDER)\n"
        'future = world.rollout(past, frames=8, controls={"action": actions})\n```',
    ]
    if result:
        lines.append(
            f"On {result.clips} held-out clips, rolled out frame by frame:\n\n{result.table()}"
        )
    lines.append(
        "`another's actions`: the same clips with another clip's. A gap of 0 would mean "
        "that the model ignores its actions. It knows the kind of scene that it was trained on, "
        "and nothing else."
    )
    return "\n\n".join(lines) + "\n"
