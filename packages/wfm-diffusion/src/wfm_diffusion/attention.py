"""Softmax attention: FlashAttention where it can run, else PyTorch's own."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, bfloat16, float16
from torch.nn.functional import scaled_dot_product_attention

try:
    from flash_attn import flash_attn_func  # ty: ignore[import-not-found]
except ImportError:
    flash_attn_func = None

HALF = (float16, bfloat16)


def attention(
    q: Float[Tensor, "b n k d"],
    k: Float[Tensor, "b m k d"],
    v: Float[Tensor, "b m k d"],
    *,
    bias: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "b n k d"]:
    """Softmax attention scaled by ``d ** -0.5``, in FlashAttention's layout.

    ``bias`` is added to the logits of the keys; FlashAttention itself takes none.
    """
    if flash_attn_func is not None and bias is None and q.is_cuda and q.dtype in HALF:
        return flash_attn_func(q, k, v)
    q, k, v = (rearrange(x, "b n k d -> b k n d") for x in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[None, None, None]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b k n d -> b n k d")
