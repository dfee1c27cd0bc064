"""Softmax attention: FlashAttention where it can run, else PyTorch's own."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, bfloat16, float16
from torch.nn.functional import scaled_dot_product_attention

try:
    from flash_attn import flash_attn_func  # ty: ignore[import-not-found]
except ImportError:
    flash_attn_func = None


def attention(
    q: Float[Tensor, "b n k d"],
    k: Float[Tensor, "b m k d"],
    v: Float[Tensor, "b m k d"],
    *,
    causal: bool = False,
) -> Float[Tensor, "b n k d"]:
    """Softmax attention scaled by ``d ** -0.5``, in FlashAttention's layout.

    ``causal`` needs ``n == m``: the two backends align unequal lengths differently.
    """
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal attention of {q.shape[1]} queries over {k.shape[1]} keys")
    if flash_attn_func is not None and q.is_cuda and q.dtype in (float16, bfloat16):
        return flash_attn_func(q, k, v, causal=causal)
    q, k, v = (rearrange(x, "b n k d -> b k n d") for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=causal)
    return rearrange(out, "b k n d -> b n k d")
