"""Scaled dot-product attention in plain PyTorch: the maths that the fused kernels implement.

Shapes: queries (B, Hq, Sq, D), keys (B, Hk, Sk, D), values (B, Hk, Sk, Dv); query head h reads key
head h // (Hq / Hk). Variable length: one batch row holding all tokens, cut by ``cu_seqlens``.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .philox import philox, threshold
from .rnn import accumulate_dtype

# An added mask below this, as torch.finfo(torch.float32).min is, leaves the key out like -inf: in
# float32 it would swallow the score, and its log-sum-exp lose the number of keys.
LEFT_OUT = -2.3e38


class Options(NamedTuple):
    """What a score is besides q·k: the same for every backend."""

    scale: float
    window_left: int = -1
    window_right: int = -1
    bottom_right: bool = False
    softcap: float = 0.0
    dropout_p: float = 0.0
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0
    seed: int = 0


def is_cap(softcap: float) -> bool:
    """A cap that no score can reach is none."""
    return 0 < softcap < 2.0**126


def options_of(values: Sequence[Any], seed: Tensor | None) -> Options:
    """Options from those of an operator's call, in order, and its seed."""
    return Options(*values)._replace(seed=0 if seed is None else int(seed))


def allowed(sq: int, sk: int, options: Options, device: torch.device) -> Tensor | None:
    """Which keys a query may see by the window, (Sq, Sk); None where all."""
    if options.window_left < 0 and options.window_right < 0:
        return None
    offset = sk - sq if options.bottom_right else 0
    distance = torch.arange(sk, device=device) - torch.arange(sq, device=device)[:, None] - offset
    inside = torch.ones_like(distance, dtype=torch.bool)
    if options.window_right >= 0:
        inside &= distance <= options.window_right
    if options.window_left >= 0:
        inside &= distance >= -options.window_left
    return inside


def dropout_factors(
    batch: range, heads: int, sizes: Sequence[int], options: Options, device: torch.device
) -> Tensor:
    """0 or 1/(1-p) for every weight, (len(batch), Hq, Sq, Sk): four keys share a counter."""
    sq, sk = sizes
    if options.dropout_p >= 1:
        return torch.zeros(len(batch), heads, sq, sk, device=device)
    quads = -(-options.max_seqlen_k // 4)
    first = torch.tensor(list(batch), dtype=torch.int64, device=device)[:, None] * heads
    row = first + torch.arange(heads, device=device)
    row = row[..., None] * options.max_seqlen_q + torch.arange(sq, device=device)
    counter = row[..., None] * quads + torch.arange(-(-sk // 4), device=device)
    words = torch.stack(philox(options.seed, counter, stream=2), -1).flatten(-2)[..., :sk]
    return (words >= threshold(options.dropout_p)).float() / (1 - options.dropout_p)


def raw_scores(q: Tensor, k: Tensor, options: Options) -> Tensor:
    """scale·q·kᵀ after the softcap, (B, Hq, Sq, Sk), of expanded heads."""
    s = options.scale * (q @ k.mT)
    return options.softcap * torch.tanh(s / options.softcap) if is_cap(options.softcap) else s


def sums_of(s: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of scores (…, Sk), and norm (…, 2), which has no gradient."""
    if s.shape[-1] == 0:
        lse = s.new_full(s.shape[:-1], -torch.inf)
        return lse, torch.stack([-lse, torch.zeros_like(lse)], -1)
    blind = (s == -torch.inf).all(-1)
    seen = s.masked_fill(blind.unsqueeze(-1), 0)
    lse, seen = torch.logsumexp(seen, -1).masked_fill(blind, -torch.inf), seen.detach()
    peak = seen.amax(-1)
    share = 1 / torch.exp(seen - peak.unsqueeze(-1)).sum(-1)
    return lse, torch.stack([peak.masked_fill(blind, torch.inf), share.masked_fill(blind, 0)], -1)


def weights_of(s: Tensor, lse: Tensor, norm: Tensor | None) -> Tensor:
    """The softmax of scores, as differentiable as ``lse``; zeros where a query sees no key."""
    blind = lse == -torch.inf
    if norm is None:
        return torch.exp(s - lse.masked_fill(blind, torch.inf).unsqueeze(-1))
    peak, share = norm.unbind(-1)
    share = share * torch.exp(lse.detach() - lse).masked_fill(blind, 1)  # 1, with the gradient
    return torch.exp(s - peak.unsqueeze(-1)) * share.unsqueeze(-1)


def masked_scores(
    s: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None, options: Options
) -> Tensor:
    """With what is added; -inf where a key may not be seen."""
    sq, sk = s.shape[-2:]
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(s.dtype).view(-1, s.shape[1], 1, 1)
        i, j = torch.arange(sq, device=s.device)[:, None], torch.arange(sk, device=s.device)
        s = s - slopes * (i + sk - sq - j).abs()
    if mask is not None:
        if mask.dtype == torch.bool:
            s = s.masked_fill(~mask, -torch.inf)
        else:
            s = (s + mask.to(s.dtype)).masked_fill(mask < LEFT_OUT, -torch.inf)
    inside = allowed(sq, sk, options, s.device)
    return s if inside is None else s.masked_fill(~inside, -torch.inf)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable attention, computed in the accumulation type: (out, lse, norm)."""
    if cu_seqlens_q is None or cu_seqlens_k is None:
        return _attend(q, k, v, mask, alibi_slopes, options, range(q.shape[0]))
    _check_bounds("cu_seqlens_q", cu_seqlens_q, q.shape[2], options.max_seqlen_q)
    _check_bounds("cu_seqlens_k", cu_seqlens_k, k.shape[2], options.max_seqlen_k)
    parts = [
        _attend(q[:, :, at_q], k[:, :, at_k], v[:, :, at_k], None, slopes, options, range(b, b + 1))
        for b, (at_q, at_k, slopes) in enumerate(_cut(cu_seqlens_q, cu_seqlens_k, alibi_slopes))
    ]
    if not parts:
        return _attend(q, k, v, None, None, options, range(0))
    outs, lses, norms = zip(*parts)
    return torch.cat(outs, 2), torch.cat(lses, 2), torch.cat(norms, 2)


def _cut(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, alibi_slopes: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """For each sequence, where its queries and keys stand, and its slopes."""
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b, (at_q, at_k) in enumerate(zip(pairwise(bounds_q), pairwise(bounds_k))):
        yield slice(*at_q), slice(*at_k), _slopes_of(alibi_slopes, b)


def _check_bounds(name: str, bounds: Tensor, total: int, longest: int) -> None:
    starts = bounds.tolist()
    if starts[0] != 0 or starts[-1] != total:
        raise RuntimeError(f"{name} must run from 0 to the number of tokens, {total}, got {starts}")
    if not all(0 <= after - before <= longest for before, after in pairwise(starts)):
        raise RuntimeError(
            f"{name} must not decrease, nor a sequence be longer than max_seqlen, {longest}, got "
            f"{starts}"
        )


def _slopes_of(alibi_slopes: Tensor | None, b: int) -> Tensor | None:
    return alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b]


def _expand(x: Tensor, heads: int) -> Tensor:
    """Key or value heads, one for each query head, in the accumulation type."""
    groups = heads // x.shape[1] if x.shape[1] else 1
    return x.to(accumulate_dtype(x.dtype)).repeat_interleave(groups, 1)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    options: Options,
    batch: range,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, wide_v = q.shape[1], _expand(v, q.shape[1])
    s = raw_scores(q.to(wide_v.dtype), _expand(k, heads), options)
    s = masked_scores(s, mask, alibi_slopes, options)
    lse, norm = sums_of(s)
    blind = (lse == -torch.inf).unsqueeze(-1)
    p = torch.softmax(s.masked_fill(blind, 0), -1).masked_fill(blind, 0)
    if options.dropout_p > 0:
        p = p * dropout_factors(batch, heads, s.shape[-2:], options, q.device).to(p.dtype)
    return (p @ wide_v).to(q.dtype), lse, norm


def _attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    norm: Tensor | None,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    options: Options,
    batch: range,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, and of the masked scores, from the log-sum-exp."""
    heads = q.shape[1]
    wide_q, wide_k, wide_v = q.to(lse.dtype), _expand(k, heads), _expand(v, heads)
    raw = raw_scores(wide_q, wide_k, options)
    p = weights_of(masked_scores(raw, mask, alibi_slopes, options), lse, norm)
    grad_out = grad_out.to(p.dtype)
    dp, dropped = grad_out @ wide_v.mT, p
    if options.dropout_p > 0:
        kept = dropout_factors(batch, heads, p.shape[-2:], options, q.device).to(p.dtype)
        dp, dropped = dp * kept, p * kept
    along = -(p * dp).sum(-1, keepdim=True)
    if grad_lse is not None:
        along = along + grad_lse.to(p.dtype).unsqueeze(-1)
    grad_scores = p * (dp + along)
    return (
        *scores_backward(grad_scores, q, k, options),
        _of_key_heads(dropped.mT @ grad_out, v),
        grad_scores,
    )


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """``fastseq::attention_forward``; the options are those of ``Options``, in order."""
    full = options_of(options, seed)
    out, lse, norm = attend(q, k, v, mask, cu_seqlens_q, cu_seqlens_k, alibi_slopes, full)
    return like_layout(out, q), lse.contiguous(), norm.contiguous()


def like_layout(out: Tensor, q: Tensor) -> Tensor:
    """``out`` (B, H, S, Dv) in memory as ``q`` is: tokens before heads where q's are."""
    if q.stride(1) < q.stride(2):
        return out.transpose(1, 2).contiguous().transpose(1, 2)
    return out.contiguous()


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    norm: Tensor | None,
    mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::attention_backward``; the last option is whether the mask's gradient is wanted."""
    full, need_mask = options_of(options[:-1], seed), options[-1]
    grad_mask = q.new_empty(0)
    if cu_seqlens_q is None or cu_seqlens_k is None:
        *grads, of_scores = _attend_backward(
            grad_out, grad_lse, q, k, v, lse, norm, mask, alibi_slopes, full, range(q.shape[0])
        )
        if need_mask and mask is not None:
            grad_mask = of_scores.sum_to_size(mask.shape).to(mask.dtype).contiguous()
    else:
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for b, (at_q, at_k, slopes) in enumerate(_cut(cu_seqlens_q, cu_seqlens_k, alibi_slopes)):
            upstream, own = (None if x is None else x[:, :, at_q] for x in (grad_lse, norm))
            parts = _attend_backward(
                grad_out[:, :, at_q], upstream, q[:, :, at_q], k[:, :, at_k], v[:, :, at_k],
                lse[:, :, at_q], own, None, slopes, full, range(b, b + 1),
            )  # fmt: skip
            for grad, part, at in zip(grads, parts, (at_q, at_k, at_k)):
                grad[:, :, at] = part
    of_q, of_k, of_v = (like_layout(g, x) for g, x in zip(grads, (q, k, v)))
    return of_q, of_k, of_v, grad_mask


def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    norm: Tensor | None,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> Tensor:
    """``fastseq::attention_weights``, differentiable; the last option is ``average``."""
    full, average = options_of(options[:-1], seed), options[-1]
    s = raw_scores(q.to(lse.dtype), _expand(k, q.shape[1]), full)
    s = masked_scores(s, mask, alibi_slopes, full)
    p = weights_of(s, lse, norm)
    if full.dropout_p > 0:
        kept = dropout_factors(range(len(q)), q.shape[1], p.shape[-2:], full, q.device)
        p = p * kept.to(p.dtype)
    return (p.mean(1) if average else p).to(q.dtype)


def scores_backward(
    grad_scores: Tensor, q: Tensor, k: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """Gradients of q and k from that of the masked scores (B, Hq, Sq, Sk); differentiable."""
    wide_q, wide_k = q.to(grad_scores.dtype), _expand(k, q.shape[1])
    ds = grad_scores * options.scale
    if is_cap(options.softcap):
        ds = ds * (1 - (raw_scores(wide_q, wide_k, options) / options.softcap) ** 2)
    return (ds @ wide_k).to(q.dtype), _of_key_heads(ds.mT @ wide_q, k)


def _of_key_heads(grad: Tensor, x: Tensor) -> Tensor:
    """A gradient of each query head's keys or values as one of the key heads' of ``x``."""
    if not grad.numel():
        return torch.zeros_like(x)
    batch, _, *rest = grad.shape  # view, not unflatten: that has no batching rule
    return grad.view(batch, x.shape[1], -1, *rest).sum(2).to(x.dtype)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """``fastseq::attention_decode``: a few queries at the end of each cached sequence."""
    outs, lses = [], []
    for b, length in enumerate(cache_seqlens.tolist()):
        if block_table is None:
            k, v = k_cache[b, :, :length], v_cache[b, :, :length]
        else:
            pages = block_table[b, : -(-length // k_cache.shape[2])].long()
            k, v = (
                cache[pages].transpose(0, 1).flatten(1, 2)[:, :length]
                for cache in (k_cache, v_cache)
            )
        slopes = _slopes_of(alibi_slopes, b)
        options = Options(scale, window_left, window_right, True, softcap)
        out, lse, _ = _attend(q[b : b + 1], k[None], v[None], None, slopes, options, range(1))
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)
