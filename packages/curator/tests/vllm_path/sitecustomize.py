"""Lets PyPI's torchvision, a CUDA build, be imported beside the CPU's torch.

It registers its operators by name only; nothing here calls them.
"""

import importlib.abc
import importlib.util
import sys

KEPT = []


class _Before(importlib.abc.MetaPathFinder):
    """Names the two operators that torchvision describes when it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        try:
            _ = torch.ops.torchvision.nms
        except (AttributeError, RuntimeError):
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            KEPT.append(library)
        return importlib.util.find_spec(name)


sys.meta_path.insert(0, _Before())
