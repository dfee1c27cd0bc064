"""Where the objects of an imagined video are, by their colour, beside where they were recorded."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# An object is followed when it covers so many pixels and its centre travels so far.
SEEN, TRAVELLED = 8, 1.0
# Colours match by chromaticity (RGB over their sum), and within these parts of the brightness.
TOLERANCE, DARKER, BRIGHTER = 0.12, 0.3, 2.5
# Another thing of that colour does not count farther than this from where the object ever was.
MARGIN = 16


def moving_masks(
    segments: Int[Tensor, "t h w"], *, highest: int | None = None
) -> list[Bool[Tensor, "t h w"]]:
    """Return the masks of the objects that are seen in the first frame and then move.

    Number 0 is the background, and numbers above ``highest`` are no objects but the robot, say.
    """
    found = []
    for number in segments[0].unique().tolist():
        mask = segments == number
        if not 0 < number <= (highest or number) or mask[0].sum() < SEEN:
            continue
        way = (centre(mask) - centre(mask[:1])).norm(dim=-1)
        if way.nan_to_num().max() >= TRAVELLED:
            found.append(mask)
    return found


def displacement(
    video: Float[Tensor, "3 f h w"],
    last: Float[Tensor, "3 h w"],
    mask: Bool[Tensor, "t h w"],
) -> Float[Tensor, " f"]:
    """Return how far an object is from its recorded place, in pixels, frame by frame.

    ``mask`` is of ``last`` and the f frames after it. Infinite where the object is there but
    nothing of its colour is; NaN where it is not there in truth.
    """
    colour = last[:, mask[0]].mean(1)
    found = alike(video, colour) & nearby(mask)
    real = mask[1:]
    error = (centre(found) - centre(real)).norm(dim=-1)
    lost = real.flatten(1).any(1) & ~found.flatten(1).any(1)
    return error.masked_fill(lost, torch.inf)


def alike(video: Float[Tensor, "3 f h w"], colour: Float[Tensor, " 3"]) -> Bool[Tensor, "f h w"]:
    """Find the pixels of a colour, RGB in [-1, 1], whatever the light on them."""
    rgb, own = (video + 1) / 2, (colour + 1) / 2
    light, own_light = rgb.sum(0).clamp(min=1e-3), own.sum().clamp(min=1e-3)
    distance = (rgb / light - (own / own_light)[:, None, None, None]).norm(dim=0)
    relative = light / own_light
    return (distance < TOLERANCE) & (relative > DARKER) & (relative < BRIGHTER)


def nearby(mask: Bool[Tensor, "t h w"]) -> Bool[Tensor, "h w"]:
    """Return the box around all places of an object, and a margin."""
    rows, columns = mask.any(2).any(0).nonzero(), mask.any(1).any(0).nonzero()
    box = torch.zeros_like(mask[0])
    top, left = (int(max(x.min() - MARGIN, 0)) for x in (rows, columns))
    box[top : int(rows.max()) + MARGIN + 1, left : int(columns.max()) + MARGIN + 1] = True
    return box


def centre(mask: Bool[Tensor, "t h w"]) -> Float[Tensor, "t 2"]:
    """Return the mean row and column of a mask in each frame; NaN where it is empty."""
    _, h, w = mask.shape
    weight = mask.float()
    total = weight.sum((1, 2))
    row = (weight.sum(2) * torch.arange(h)).sum(1) / total
    column = (weight.sum(1) * torch.arange(w)).sum(1) / total
    return torch.stack([row, column], 1)


def summary(errors: Float[Tensor, "k f"]) -> tuple[float | None, float | None]:
    """Return the mean of what was found, and the part of the frames in which it was lost.

    None where no object was, or none was ever found.
    """
    there = errors[~errors.isnan()]
    found = there[there.isfinite()]
    mean = found.mean().item() if len(found) else None
    return mean, 1 - len(found) / len(there) if len(there) else None
