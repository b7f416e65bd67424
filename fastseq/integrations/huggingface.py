"""``attn_implementation="fastseq"`` in Hugging Face transformers.

>>> from fastseq.integrations import huggingface
>>> huggingface.register()
>>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fastseq")

A query that sees no key, as padding on the left of a causal model does, gets zeros; "eager" gives
it the mean of all values. Results at real tokens are the same; a loss that counts the step from the
last padding to the first token differs.
"""

import torch
from torch import Tensor

from ..ops.attention import attention


def register(name: str = "fastseq") -> None:
    """Makes ``name`` an attention implementation of transformers.

    Raises:
        ImportError: if transformers 5 or newer is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention_forward)
    # Bool masks, and none where causality says it all. Without an entry here there would be none.
    AttentionMaskInterface.register(name, sdpa_mask)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention function.

    Args:
        module: the attention layer; causal if its ``is_causal`` says so, or says nothing.
        query: (B, Hq, Sq, D); key: (B, Hk, Sk, D); value: (B, Hk, Sk, Dv). Hk divides Hq.
        attention_mask: bool (True takes part) or floating (added), four dimensions, each full or 1.
            Sliding windows and padding come through it.
        position_bias: floating, added to the scores; it gets a gradient.
        softcap: scores become softcap·tanh(score/softcap).
        s_aux: (Hq,) a score that takes part in the softmax without a value (attention sink).

    Returns:
        (B, Sq, Hq, Dv), and None: no weights.

    Raises:
        NotImplementedError: for the paged cache of continuous batching.
    """
    if kwargs.get("cache") is not None:
        raise NotImplementedError("continuous batching: fastseq reads no paged cache here")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # One query is the last one and sees all keys. More of them without a mask start at key 0: what
    # a static cache holds beyond the last of them is not there yet.
    causal = query.shape[2] > 1 and attention_mask is None and causal
    out, lse = attention(
        query, key, value, _merge(attention_mask, position_bias),
        scale=scaling, window=(-1, 0 if causal else -1), softcap=softcap or 0.0, dropout_p=dropout,
    )  # fmt: skip
    if s_aux is not None:
        # The sink adds exp(s_aux) to the softmax's denominator, exp(lse).
        out = out * torch.sigmoid(lse - s_aux.view(-1, 1).to(lse.dtype)).unsqueeze(-1).to(out.dtype)
    return out.transpose(1, 2).contiguous(), None


def _merge(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
