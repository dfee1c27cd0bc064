"""Muon: steps of the same size in every direction of a weight matrix (Jordan et al. 2024)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# A quintic whose fixed points are near 1: five rounds bring singular values to about 0.7 .. 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)


# same as: packages/tokenizer/src/wfm_tokenizer/muon.py
class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and convolutions, AdamW for vectors.

    A convolution counts as the matrix ``c_out x (c_in k)``. The update of a matrix is scaled to
    the size of AdamW's (root mean square 0.2; Liu et al. 2025, arXiv 2502.16982), so one
    learning rate serves both. A group with ``matrices=False`` takes AdamW for all: embeddings
    and output layers, of which a step touches few rows. State: ``exp_avg``, and for AdamW
    ``exp_avg_sq`` and ``step``. ``dtype`` is what the orthogonalisation computes in; bfloat16
    is enough for it.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.95, 0.99),
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "matrices": True}
        super().__init__(parameters, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # ty: ignore[incompatible-method-override]
        """Take one step along the gradients at hand."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                is_matrix = group["matrices"] and parameter.ndim > 1
                update = self._matrix if is_matrix else self._vector
                change = update(self.state[parameter], parameter.grad, *group["betas"])
                parameter.add_(change, alpha=-group["lr"])
        return loss

    def _matrix(self, state: dict[str, Any], grad: Tensor, momentum: float, _: float) -> Tensor:
        mean = state.setdefault("exp_avg", torch.zeros_like(grad))
        mean.lerp_(grad, 1 - momentum)
        ahead = grad.lerp(mean, momentum).flatten(1)  # as Nesterov
        size = 0.2 * max(ahead.shape) ** 0.5
        return orthogonal(ahead.to(self.dtype)).to(grad.dtype).view_as(grad) * size

    def _vector(self, state: dict[str, Any], grad: Tensor, beta1: float, beta2: float) -> Tensor:
        mean = state.setdefault("exp_avg", torch.zeros_like(grad))
        square = state.setdefault("exp_avg_sq", torch.zeros_like(grad))
        state["step"] = state.get("step", torch.zeros(())) + 1
        count = float(state["step"])
        mean.lerp_(grad, 1 - beta1)
        square.lerp_(grad.square(), 1 - beta2)
        unbiased = (square / (1 - beta2**count)).sqrt()
        return mean / (1 - beta1**count) / (unbiased + 1e-8)


# same as: packages/tokenizer/src/wfm_tokenizer/muon.py
def orthogonal(matrix: Float[Tensor, "m n"], rounds: int = 5) -> Float[Tensor, "m n"]:
    """Bring all singular values near 1 by Newton-Schulz iterations, keeping the vectors."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
