"""The training loss: cross-entropy of the next token, and z-loss."""

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor


class Loss(NamedTuple):
    """A training loss and what it is made of."""

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    z: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def next_token_loss(
    logits: Float[Tensor, "b n v"],
    labels: Int64[Tensor, "b n"],
    *,
    ignore: int = 0,
    z_loss: float = 1e-4,
) -> Loss:
    """Return cross-entropy + ``z_loss`` * mean(logsumexp^2), in nats.

    The first ``ignore`` positions have no cross-entropy; the mean of z is over all of them.
    """
    logits = logits.float()
    z = logits.logsumexp(-1)
    scored = logits[:, ignore:]
    kept = labels[:, ignore:]
    likelihood = scored.gather(-1, kept[..., None])[..., 0]
    cross_entropy = (z[:, ignore:] - likelihood).mean()
    mean_z = z.square().mean()
    accuracy = (scored.detach().argmax(-1) == kept).float().mean()
    return Loss(cross_entropy + z_loss * mean_z, cross_entropy, mean_z, accuracy)
