"""``attn_implementation="fastseq"`` in Hugging Face transformers.

>>> from fastseq.integrations import huggingface
>>> huggingface.register()
>>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fastseq")

Models whose attention transformers only runs as "eager" read masks in its way; in them the
implementation is called "fastseq-additive". One that computes attention by code of its own keeps
doing so, and says so once; one that has a class for each implementation and none for ours raises.

A query that sees no key, as padding on the left of a causal model does, gets zeros; "eager" gives
it the mean of all values. Results at real tokens are the same; a loss that counts the step from the
last padding to the first token differs.
"""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from ..ops.attention import attention

#: What models pass along and attention does not depend on, or finds in its mask already: "sdpa" and
#: "eager" read none of it either. What else is not None raises.
_WITHOUT_EFFECT = {
    "sliding_window", "position_ids", "cache_position", "seq_idx", "deterministic",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    "input_ids", "inputs_embeds", "token_type_ids", "mm_token_type_ids", "labels",
    "use_cache", "return_dict", "num_items_in_batch", "logits_to_keep",
    "output_hidden_states", "output_router_logits",
}  # fmt: skip

#: Implementations by the names that a configuration may have: the one that was registered.
_registered: dict[str, str] = {}


def register(name: str = "fastseq") -> None:
    """Makes ``name`` an attention implementation of transformers.

    Raises:
        ImportError: if transformers 5 or newer is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    additive = f"{name}-additive"
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, _mask)
    AttentionInterface.register(additive, _additive_attention_forward)
    AttentionMaskInterface.register(additive, _additive_mask)
    if not _registered:
        original = PreTrainedModel.get_correct_attn_implementation
        PreTrainedModel.get_correct_attn_implementation = _choosing(original)  # type: ignore
    _registered.update({name: name, additive: name})


def _choosing(get_correct_attn_implementation: Any) -> Any:
    """transformers' check of what is asked for, which then asks which of our two it is to be."""

    @functools.wraps(get_correct_attn_implementation)
    def choose(self: Any, *args: Any, **kwargs: Any) -> str:
        from ._huggingface_models import implementation_for

        found: str = get_correct_attn_implementation(self, *args, **kwargs)
        name = _registered.get(found)
        return found if name is None else implementation_for(self, name, f"{name}-additive")

    return choose


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
    indices: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention function.

    Args:
        module: the attention layer; causal if its ``is_causal`` says so, or says nothing.
        query: (B, Hq, Sq, D); key: (B, Hk, Sk, D); value: (B, Hk, Sk, Dv). Hk divides Hq. A batch
            of 1 goes with any.
        attention_mask: bool (True takes part) or floating (added), up to four dimensions, each full
            or 1. Sliding windows and padding come through it. Without one, causal queries are the
            last of as many positions as there are keys.
        position_bias: floating, added to the scores; it gets a gradient.
        softcap: scores become softcap·tanh(score/softcap).
        s_aux: (Hq,) a score that takes part in the softmax without a value (attention sink).
        indices: (B, Sq, N) the only keys that a query sees, of those that the mask lets it.

    Returns:
        (B, Sq, Hq, Dv), and None: no weights.

    Raises:
        NotImplementedError: for an argument that would change the result and that we do not serve,
            the paged cache of continuous batching among them.
    """
    _check(module, attention_mask, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    bottom_right = False
    if attention_mask is None:
        if query.shape[2] == 1:
            causal = False
        elif causal and query.shape[2] != key.shape[2]:
            bottom_right = True
    elif _is_full(attention_mask):
        causal, attention_mask = False, None
    elif _is_causal(attention_mask, query.shape[2], key.shape[2]):
        causal, attention_mask = True, None
    else:
        causal = False
        while attention_mask.dim() < 4:
            attention_mask = attention_mask.unsqueeze(0)
    if indices is not None:
        attention_mask = _merge(attention_mask, _only(indices, key.shape[2]))
    query, key, value = _same_batch(query, key, value, attention_mask)
    out, lse = attention(
        query, key, value, _merge(attention_mask, position_bias),
        scale=scaling, window=(-1, 0 if causal else -1), bottom_right=bottom_right,
        softcap=softcap or 0.0, dropout_p=dropout,
    )  # fmt: skip
    if s_aux is not None:
        # The sink adds exp(s_aux) to the softmax's denominator, exp(lse).
        out = out * torch.sigmoid(lse - s_aux.view(-1, 1).to(lse.dtype)).unsqueeze(-1).to(out.dtype)
    return out.transpose(1, 2).contiguous(), None


def _additive_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``attention_forward`` for models that know "eager" only: the mask says all, None is all."""
    kwargs["is_causal"] = False
    return attention_forward(module, query, key, value, attention_mask, *args, **kwargs)


def _check(module: torch.nn.Module, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    """Raises where an argument that nobody here reads would change the result."""
    for name, value in kwargs.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name == "output_attentions":
            if value and not torch.compiler.is_compiling():
                _warn_of_weights()
        elif name == "cache":
            raise NotImplementedError("continuous batching: fastseq reads no paged cache here")
        else:
            raise NotImplementedError(
                f"{type(module).__name__} passes {name} to its attention, which fastseq does not "
                'serve: take attn_implementation="sdpa" or "eager"'
            )
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is not None and mask is None and bounds.numel() > 2:
        raise NotImplementedError(
            "several sequences in a row (cu_seq_lens_q) without a mask that parts them: give the "
            "model position_ids that start anew with each"
        )


@functools.cache
def _warn_of_weights() -> None:
    warnings.warn(
        'attn_implementation="fastseq" makes no matrix of weights: output_attentions=True gives '
        'None for it; "eager" has them',
        stacklevel=2,
    )


def _same_batch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with each batch of 1 expanded to the largest, as torch broadcasts."""
    batch = q.shape[0] if mask is None else max(q.shape[0], mask.shape[0])
    if k.shape[0] == batch and q.shape[0] == batch and v.shape[0] == batch:
        return q, k, v
    batch = max(batch, k.shape[0], v.shape[0])
    q, k, v = (x if x.shape[0] == batch else x.expand(batch, -1, -1, -1) for x in (q, k, v))
    return q, k, v


def _only(indices: Tensor, keys: int) -> Tensor:
    """True at the keys named, (B, 1, Sq, Sk)."""
    mask = indices.new_zeros((*indices.shape[:2], keys), dtype=torch.bool)
    return mask.scatter(-1, indices.long(), True).unsqueeze(1)


def _merge(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """One mask that says what both do."""
    if a is None or b is None:
        return b if a is None else a
    if a.dtype == torch.bool:
        return a & b if b.dtype == torch.bool else b.masked_fill(~a, -torch.inf)
    return a.masked_fill(~b, -torch.inf) if b.dtype == torch.bool else a + b


def _mask(*, q_length: int, kv_length: int, config: Any = None, **options: Any) -> Tensor | None:
    """transformers' masks in the way of "sdpa": bool, and None where causality says it all.

    None only for as many causal queries as keys, or one: elsewhere it would not say whether queries
    are the first positions (an empty static cache) or the last, and of a causal layer that is to
    see all keys, not even that.
    """
    from transformers.masking_utils import sdpa_mask

    from ._huggingface_models import keeps_sdpa_conventions

    options |= {"q_length": q_length, "kv_length": kv_length}
    if type(config) not in keeps_sdpa_conventions:
        # The implementation was written into the configuration of a model that was not asked.
        return _additive_mask(**options)
    mask: Tensor | None = sdpa_mask(**options)
    if mask is not None:
        return mask
    if not options.get("allow_is_causal_skip", True):
        true = torch.ones((), dtype=torch.bool, device=options["device"])
        return true.expand(options["batch_size"], 1, q_length, kv_length)
    # Layers that see all of a prompt call themselves not causal, whatever mask the model makes.
    free = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    if q_length == 1 or (q_length == kv_length and not free):
        return None
    mask = sdpa_mask(**options | {"allow_is_causal_skip": False})
    return None if mask is None else _note_causal(mask)


def _additive_mask(**options: Any) -> Tensor | None:
    """transformers' masks in the way of "eager": floating; None if all queries see all keys."""
    from transformers.masking_utils import eager_mask, sdpa_mask

    mask: Tensor | None = eager_mask(**options)
    if mask is None or options["q_length"] == 1 or not options.get("allow_is_causal_skip", True):
        return mask
    return _note_causal(mask) if sdpa_mask(**options) is None else mask


def _note_causal(mask: Tensor) -> Tensor:
    """Notes on a mask that it is causal from the first key on; slices and casts have no note."""
    if not torch.compiler.is_compiling() and not mask.is_inference():
        mask._fastseq_causal = (mask._version, *mask.shape[-2:])  # type: ignore[attr-defined]
    return mask


def _is_causal(mask: Tensor, queries: int, keys: int) -> bool:
    """Whether the mask is noted to be causal, not changed since, and of these keys."""
    if torch.compiler.is_compiling():
        return False
    note = getattr(mask, "_fastseq_causal", None)
    return note is not None and note == (mask._version, queries, keys)


def _is_full(mask: Tensor) -> bool:
    """Whether it is one True in the place of all, as ``_mask`` makes it."""
    return mask.dtype == torch.bool and not any(mask.stride())
