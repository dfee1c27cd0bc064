"""Action chunks: many frames for many actions in one call of the network.

``recipes.action`` predicts one frame for one action. Here a whole clip is denoised at once,
as in Cosmos 2 and IRASim (arXiv 2406.14540), whose per-frame embeddings served best: each
latent frame gets the actions that led to it. Actions have as many numbers as the data has.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from .clips import actions_of
from .encoder import mlp, zero_last
from .interfaces import LabelledClip, LatentCodec
from .steering import Condition, ConditionNet, Place, Steering, only


class ActionChunk(Steering):
    """Follow a chunk of actions."""

    inputs: ClassVar[tuple[str, ...]] = ("action",)

    kind: Literal["action"] = "action"
    per: Literal["frame", "clip"] = Field(
        "frame", description="one embedding for each latent frame, or one for the whole clip"
    )
    numbers: int | None = Field(None, gt=0, description="in an action; None: as in the data")
    steps: int | None = Field(None, gt=0, description="actions of a sample; None: as trained")

    @property
    def whole_clips(self) -> bool:
        return self.per == "clip"

    def read(self, clips: Sequence[LabelledClip], start: int, stop: int) -> Condition:
        (clip,) = clips
        what = str(getattr(clip, "stem", clip.caption))
        return {"action": actions_of(clip, what)[start : stop - 1]}

    def encoder(self, place: Place, codec: LatentCodec | None = None) -> ConditionNet:
        return ChunkEncoder(place, self)


class ChunkEncoder(ConditionNet):
    """Actions between the frames of a clip -> ``adaln`` and ``adaln_shared``.

    ``action`` (b s a) has ``s = ct * (tl - 1)`` rows. Per frame, the first latent frame, which no
    action led to, gets none; per clip, all rows make one vector. NaN stands for an action that
    is not known, such as those before a rollout, and counts as the mean one. Both MLPs end at
    zero, so an untrained encoder leaves the network as it was.
    """

    mean: Float[Tensor, " a"]
    scale: Float[Tensor, " a"]

    def __init__(self, place: Place, settings: ActionChunk) -> None:
        super().__init__()
        assert settings.numbers
        assert settings.steps
        self.per, self.rows = settings.per, place.compression[0]
        if settings.per == "clip":
            self.rows = settings.steps
        self.register_buffer("mean", torch.zeros(settings.numbers))
        self.register_buffer("scale", torch.ones(settings.numbers))
        size, d = self.rows * settings.numbers, place.width
        self.adaln = zero_last(mlp(size, 4 * d, d, nn.GELU(approximate="tanh")))
        self.adaln_shared = zero_last(mlp(size, 4 * d, 3 * d, nn.GELU(approximate="tanh")))

    def fit(self, digest: Mapping[str, Tensor]) -> None:
        rows = rearrange(digest["action"].float(), "n s a -> (n s) a")
        spread = rows.std(dim=0, correction=0)
        self.mean.copy_(rows.mean(dim=0))
        self.scale.copy_(torch.where(spread < 1e-4, torch.ones_like(spread), spread))

    def condition(self, digest: Mapping[str, Tensor], /) -> Condition:
        """Return both vectors, b d or b t d.

        Raises:
            KeyError: unknown inputs.
            ValueError: actions of another size.
        """
        only(digest, ActionChunk.inputs, ActionChunk.inputs)
        action = digest["action"].to(self.mean)
        if action.ndim != 3 or action.shape[2] != len(self.mean) or action.shape[1] % self.rows:
            raise ValueError(
                f"actions have shape {tuple(action.shape)}; the model takes b s "
                f"{len(self.mean)}, s a multiple of {self.rows}"
            )
        action = ((action - self.mean) / self.scale).nan_to_num(0.0)
        rows = rearrange(action, "b (t s) a -> b t (s a)", s=self.rows)
        found = {"adaln": self.adaln(rows), "adaln_shared": self.adaln_shared(rows)}
        if self.per == "clip":
            return {name: value[:, 0] for name, value in found.items()}
        return {name: F.pad(value, (0, 0, 1, 0)) for name, value in found.items()}
