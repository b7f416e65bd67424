"""Turns an attention case into things to run: ours, what it is compared with, and the oracle."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastseq

from . import attention_blocks, attention_peers
from .attention_blocks import Scores
from .attention_modules import encoder, multihead
from .attention_steps import SEED, leaves_of, step, workload
from .cases_attention import Case
from .suite import Workload
from .workloads import real_lengths


def build(case: Case, device: torch.device) -> Workload:
    torch.manual_seed(SEED)
    return {
        "attention": _attention,
        "varlen": _varlen,
        "decode": _decode,
        "multihead": multihead,
        "encoder": encoder,
        "additive": _additive,
    }[case.kind](case, device)


def _visible(case: Case) -> float:
    """Pairs of a query and a key that it sees, of one head."""
    sq, sk = case.length, case.num_keys
    if case.window:
        return sum(min(i, case.window) + 1 for i in range(sq))
    return sum(min(i + 1, sk) for i in range(sq)) if case.causal else sq * sk


def _qkv(case: Case, device: torch.device) -> dict[str, Tensor]:
    def new(heads: int, length: int) -> Tensor:
        return torch.randn(case.batch, heads, length, case.head_dim, device=device).to(case.dtype)

    kv_heads = case.num_kv_heads
    return {
        "q": new(case.heads, case.length),
        "k": new(kv_heads, case.num_keys),
        "v": new(kv_heads, case.num_keys),
    }


def _mask(case: Case, device: torch.device) -> Tensor | None:
    """What torch has to be given: features that are numbers to us are a mask to torch."""
    sq, sk = case.length, case.num_keys
    i, j = torch.arange(sq, device=device)[:, None], torch.arange(sk, device=device)
    if case.window:
        return ((i >= j) & (i - j <= case.window))[None, None]
    if case.alibi:
        bias = case.slopes(device)[:, None, None] * (j - i)
        return bias.masked_fill(j > i, -torch.inf)[None]
    if case.mask == "padding":
        lengths = torch.randint(sk // 4, sk + 1, (case.batch, 1, 1, 1))
        return j < lengths.to(device)
    if case.mask == "boolean":
        return torch.rand(case.batch, 1, sq, sk, device=device) < 0.7
    if case.mask:
        return torch.randn(1, case.heads, sq, sk, device=device).to(case.dtype)
    return None


def _attention(case: Case, device: torch.device) -> Workload:
    tensors, mask = _qkv(case, device), _mask(case, device)
    learned = case.mask.endswith("gradient")
    if learned:
        tensors["bias"] = mask
    causal = case.causal and not (case.window or case.alibi)  # which torch's masks have in them
    options = {"dropout_p": case.dropout, "enable_gqa": case.num_kv_heads != case.heads}
    extras: dict[str, object] = {"softcap": case.softcap}
    if case.window:
        extras["window_size"] = (case.window, 0)
    if case.alibi:
        extras["alibi_slopes"] = case.slopes(device)
    our_mask = None if case.window or case.alibi else mask
    # ALiBi's numbers are rounded for torch alone: what it adds is of the queries' type.
    their_mask = mask.to(case.dtype) if case.alibi else mask

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = our_mask) -> Tensor:
        return fastseq.scaled_dot_product_attention(
            q, k, v, bias, is_causal=case.causal, **options, **extras
        )

    def theirs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = their_mask) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, **options)

    def blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = mask) -> Tensor:
        # Our layers draw a seed as this does.
        seed = int(torch.randint(2**62, (), dtype=torch.int64)) if case.dropout else 0
        scores = Scores(causal, case.softcap, case.dropout, seed)
        return attention_blocks.attention(q, k, v, bias, scores)

    def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = q @ k.mT * q.shape[-1] ** -0.5
        s = case.softcap * torch.tanh(s / case.softcap)
        upper = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1)
        return s.masked_fill(upper, -torch.inf).softmax(-1) @ v

    return workload(
        case,
        ours,
        unfused if case.softcap else theirs,
        tensors,
        4.0 * case.batch * case.heads * case.head_dim * _visible(case),
        exact=blocks,
        compared=blocks if case.dropout else None,  # torch's draws other weights to drop
        peers=attention_peers.of(case, theirs, extras),
    )


def _varlen(case: Case, device: torch.device) -> Workload:
    """Real sentences one after the other, against the same padded and masked."""
    lengths = torch.tensor([english for english, _ in real_lengths()[: case.batch]])
    longest, total = int(lengths.max()), int(lengths.sum())
    bounds = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    real = torch.arange(longest) < lengths[:, None]
    at = real.flatten().nonzero().squeeze(1).to(device)
    real = real[:, None, None].to(device)
    tensors = {
        name: torch.randn(total, case.heads, case.head_dim, device=device).to(case.dtype)
        for name in ("q", "k", "v")
    }

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(case.batch * longest, *x.shape[1:]).index_copy(0, at, x)
        return rows.unflatten(0, (case.batch, longest)).transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fastseq.flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, real)

    def theirs_of_packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return theirs(padded(q), padded(k), padded(v)).transpose(1, 2).flatten(0, 1)[at]

    flops = 4.0 * case.heads * case.head_dim * float((lengths.double() ** 2).sum())
    peers = attention_peers.of_packed(case, bounds, longest)
    work = workload(case, ours, theirs_of_packed, tensors, flops, peers=peers)
    leaves = leaves_of({name: padded(x) for name, x in tensors.items()}, case.train)
    work.timed[case.baseline] = step(
        lambda: theirs(**leaves), list(leaves.values()), case.train
    )  # padded beforehand, as it is in their models
    work.facts["tokens"] = f"{total} of {longest * case.batch}"
    return work


def _decode(case: Case, device: torch.device) -> Workload:
    tensors = _qkv(case, device)
    caches = {name: tensors[name].transpose(1, 2).contiguous() for name in ("k", "v")}
    held = torch.full((case.batch,), case.keys, dtype=torch.int32, device=device)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fastseq.flash_attn_with_kvcache(
            q.transpose(1, 2), caches["k"], caches["v"], cache_seqlens=held, causal=True
        ).transpose(1, 2)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=case.num_kv_heads != case.heads)

    flops = 4.0 * case.batch * case.heads * case.head_dim * case.keys
    return workload(
        case, ours, theirs, tensors, flops,
        exact=attention_blocks.attention, peers=attention_peers.of(case, theirs, {}),
    )  # fmt: skip


def _additive(case: Case, device: torch.device) -> Workload:
    """Of projected queries and keys; unfused it holds all of (batch, queries, keys, dim)."""
    tensors = {
        "query": torch.randn(case.batch, case.length, case.head_dim, device=device),
        "key": torch.randn(case.batch, case.num_keys, case.head_dim, device=device),
        "value": torch.randn(case.batch, case.num_keys, case.head_dim, device=device),
        "v": torch.randn(case.head_dim, device=device) * case.head_dim**-0.5,
    }
    tensors = {name: x.to(case.dtype) for name, x in tensors.items()}

    def ours(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
        return fastseq.additive_attention(query, key, value, None, None, v)

    def theirs(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
        scores = torch.tanh(query[:, :, None] + key[:, None]) @ v
        return scores.softmax(-1) @ value

    def exact(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
        # A few sentences at a time, again for their gradients: float64 of all is many GiB.
        parts = zip(*(x.split(8) for x in (query, key, value)))
        return torch.cat([checkpoint(theirs, *part, v, use_reentrant=False) for part in parts])

    pairs = case.batch * case.length * case.num_keys
    return workload(case, ours, theirs, tensors, 6.0 * pairs * case.head_dim, exact=exact)
