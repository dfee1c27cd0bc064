"""Fold the adapters of a saved model into its network."""

from pathlib import Path

import torch

from .clip_recipe import ClipRecipe, load_clip_model, save_clip_model
from .network_files import ADAPTER
from .saved import load_codec, read_recipe


def merge_model(source: str | Path, out: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model whose folder holds all of its network, and needs its base no more.

    Raises:
        FileNotFoundError: no such model.
        FileExistsError: there is something at ``out``.
        ValueError: the model has no adapters that are not folded in yet.
    """
    folder, recipe = read_recipe(source)
    if not isinstance(recipe, ClipRecipe) or recipe.whole or not (folder / ADAPTER).is_dir():
        raise ValueError(f"{source}: has no adapters to fold in; its network is whole")
    if out.exists():
        raise FileExistsError(f"{out}: exists already; choose another folder")
    model, _ = load_clip_model(folder, recipe, load_codec(recipe.codec))
    whole = recipe.model_copy(update={"whole": True})
    card = (folder / "README.md").read_text()
    save_clip_model(out, whole, model, [], card=card, dtype=dtype)
