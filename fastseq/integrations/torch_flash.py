"""``F.scaled_dot_product_attention`` on fastseq's kernels, through torch's own registry.

>>> from fastseq.integrations import torch_flash
>>> torch_flash.register()
>>> torch.nn.attention.activate_flash_attention_impl("fastseq")

From then on the calls for which torch chooses its flash attention run here, in anybody's code,
until ``torch.nn.attention.restore_flash_attention_impl()``.
"""

import torch
from torch import Tensor

from .. import kernels

_NAME = "_scaled_dot_product_flash_attention"


def register(name: str = "fastseq") -> None:
    """Adds ``name`` to ``torch.nn.attention.list_flash_attention_impls()``; activates nothing.

    Raises:
        RuntimeError: where torch has no such registry.
    """
    add = getattr(torch.nn.attention, "register_flash_attention_impl", None)
    if add is None:
        raise RuntimeError(
            f"torch {torch.__version__} has no registry of flash attention implementations"
        )
    add(name, register_fn=_Kernels)


class _Kernels:
    """fastseq's kernels in the place of torch's, until ``remove``."""

    def __init__(self) -> None:
        self.overrides = torch.library.Library("aten", "IMPL")
        self.overrides.impl(f"{_NAME}_for_cpu", _forward_cpu, "CPU")
        self.overrides.impl(f"{_NAME}_for_cpu_backward", _backward_cpu, "CPU")
        if torch.cuda.is_available() and hasattr(kernels, "attention_forward"):
            self.overrides.impl(_NAME, _forward_cuda, "CUDA")
            self.overrides.impl(f"{_NAME}_backward", _backward_cuda, "CUDA")

    def remove(self) -> None:
        self.overrides._destroy()


def _options(
    q: Tensor, k: Tensor, dropout_p: float, is_causal: bool, scale: float | None
) -> tuple[float, int, int, bool, float, float, int, int]:
    if dropout_p != 0:
        raise RuntimeError(f"fastseq's flash attention draws no dropout here, got {dropout_p}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return scale, -1, 0 if is_causal else -1, False, 0.0, 0.0, q.shape[2], k.shape[2]


def _four_dimensional(mask: Tensor | None) -> Tensor | None:
    return mask if mask is None or mask.dim() == 4 else mask.view(1, 1, *mask.shape)


def _tokens_first(x: Tensor) -> Tensor:
    """(B, H, S, …) in memory as (B, S, H, …), which is what torch says of these results."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _forward_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    options = _options(q, k, dropout_p, is_causal, scale)
    mask = _four_dimensional(attn_mask)
    out, lse, _ = torch.ops.fastseq.attention_forward(
        q, k, v, mask, None, None, None, None, *options
    )
    return out, _tokens_first(lse)


def _backward_cpu(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    options = _options(q, k, dropout_p, is_causal, scale)
    *grads, _ = torch.ops.fastseq.attention_backward(
        grad_out, None, q, k, v, out, lse, None,
        _four_dimensional(attn_mask), None, None, None, None, *options, False,
    )  # fmt: skip
    return tuple(map(_tokens_first, grads))


def _forward_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | int | None, ...]:
    out, lse = _forward_cpu(q, k, v, dropout_p, is_causal, scale=scale)
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, that is not drawn
    unused = torch.zeros((), dtype=torch.uint64, device=q.device)
    debug_mask = q.new_empty(0)
    return out, lse.contiguous(), None, None, q.shape[2], k.shape[2], state, unused, debug_mask


def _backward_cuda(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    return _backward_cpu(grad_out, q, k, v, out, lse, dropout_p, is_causal, scale=scale)
