"""Turns an attention case into things to run: ours, what it is compared with, and the oracle."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastseq
from fastseq.reference import attention as reference

from .cases_attention import Case
from .suite import Results, Workload
from .workloads import real_lengths

SEED = 20261
Function = Callable[..., Tensor]


def build(case: Case, device: torch.device) -> Workload:
    torch.manual_seed(SEED)
    return {
        "attention": _attention,
        "varlen": _varlen,
        "decode": _decode,
        "multihead": _multihead,
        "encoder": _encoder,
        "additive": _additive,
    }[case.kind](case, device)


def _step(function: Callable[[], Tensor], leaves: Sequence[Tensor], train: bool):
    """What is timed: the call alone, or with the gradients of ``leaves``."""
    if not train:

        def infer() -> Tensor:
            with torch.no_grad():
                return function()

        return infer

    upstream: list[Tensor] = []

    def both() -> tuple[Tensor, ...]:
        out = function()
        if not upstream:
            upstream.append(torch.randn_like(out))
        return torch.autograd.grad(out, leaves, upstream)

    return both


def _results(function: Callable[[], Tensor], leaves: dict[str, Tensor], train: bool) -> Results:
    out = function()
    found = {"output": out.detach()}
    if train:
        generator = torch.Generator().manual_seed(SEED)
        upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        grads = torch.autograd.grad(out, list(leaves.values()), upstream.to(out))
        found |= {f"grad {name}": g for name, g in zip(leaves, grads)}
    return found


def _moved(
    tensors: dict[str, Tensor], dtype: torch.dtype | None = None, train: bool = True
) -> dict[str, Tensor]:
    """Fresh leaves."""
    return {
        name: x.detach().to(dtype or x.dtype).requires_grad_(train) for name, x in tensors.items()
    }


def _work(
    case: Case,
    ours: Function,
    theirs: Function,
    tensors: dict[str, Tensor],
    flops: float,
    exact: Function | None = None,
    compared: Function | None = None,
    peers: dict[str, Function] | None = None,
) -> Workload:
    """Functions of ``tensors``. ``exact``: the oracle, ``theirs`` in float64 if not given;
    ``compared``: for parity in place of ``theirs``.
    """
    exact, compared = exact or theirs, compared or theirs

    def results() -> tuple[Results, Results, Results]:
        found = []
        for function, dtype in ((ours, None), (compared, None), (exact, torch.float64)):
            leaves = _moved(tensors, dtype)
            torch.manual_seed(SEED)
            found.append(_results(lambda f=function, x=leaves: f(**x), leaves, case.train))
        return found[0], found[1], found[2]

    def timed(function: Function) -> Callable[[], object]:
        leaves = _moved(tensors, train=case.train)
        return _step(lambda: function(**leaves), list(leaves.values()), case.train)

    with torch.no_grad():
        out_elements = ours(**tensors).numel()
    moved = sum(x.numel() for x in tensors.values()) + out_elements
    return Workload(
        {"fastseq": timed(ours), case.baseline: timed(theirs)},
        results,
        flops * (3.5 if case.train else 1),
        float(moved * case.dtype.itemsize * (2 if case.train else 1)),
        peers={name: timed(function) for name, function in (peers or {}).items()},
    )


# ---- functions ----------------------------------------------------------------------------------


def _visible(case: Case) -> float:
    """Pairs of a query and a key that it sees, of one head."""
    sq, sk = case.length, case.num_keys
    if case.window:
        return sum(min(i, case.window) + 1 for i in range(sq))
    return sum(min(i + 1, sk) for i in range(sq)) if case.causal else sq * sk


def _qkv(case: Case, device: torch.device) -> dict[str, Tensor]:
    def new(heads: int, length: int) -> Tensor:
        x = torch.randn(case.batch, heads, length, case.head_dim)
        return x.to(device, case.dtype)

    kv_heads = case.num_kv_heads
    return {
        "q": new(case.heads, case.length),
        "k": new(kv_heads, case.num_keys),
        "v": new(kv_heads, case.num_keys),
    }


def _mask(case: Case, device: torch.device) -> Tensor | None:
    """What torch has to be given: features that are numbers to us are a mask to torch."""
    sq, sk = case.length, case.num_keys
    distance = torch.arange(sq)[:, None] - torch.arange(sk)
    if case.window:
        return ((distance >= 0) & (distance <= case.window)).to(device)
    if case.alibi:
        bias = -_slopes(case)[:, None, None] * distance.abs()
        bias = bias.masked_fill(distance < 0, -torch.inf)
        return bias.to(device, case.dtype)
    if case.mask == "padding":
        lengths = torch.randint(sk // 4, sk + 1, (case.batch, 1, 1, 1))
        return (torch.arange(sk) < lengths).to(device)
    if case.mask == "boolean":
        return (torch.rand(case.batch, 1, sq, sk) < 0.7).to(device)
    if case.mask:
        return torch.randn(1, case.heads, sq, sk).to(device, case.dtype)
    return None


def _slopes(case: Case) -> Tensor:
    return 2.0 ** (-8 / case.heads * torch.arange(1, case.heads + 1))


def _attention(case: Case, device: torch.device) -> Workload:
    tensors, mask = _qkv(case, device), _mask(case, device)
    learned = case.mask.endswith("gradient")
    if learned:
        tensors["bias"] = mask
    grouped = case.num_kv_heads != case.heads
    causal = case.causal and not (case.window or case.alibi)
    options = {"dropout_p": case.dropout, "enable_gqa": grouped}
    extras: dict[str, object] = {"softcap": case.softcap}
    if case.window:
        extras["window_size"] = (case.window, 0)
    if case.alibi:
        extras["alibi_slopes"] = _slopes(case).to(device)

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        given = bias if learned else None if case.window or case.alibi else mask
        return fastseq.scaled_dot_product_attention(
            q, k, v, given, is_causal=case.causal, **options, **extras
        )

    def theirs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        given = bias if learned else mask
        if given is not None and given.dtype != torch.bool:
            given = given.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, given, is_causal=causal, **options)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What theirs has no option for, or draws other random numbers for."""
        seed = int(torch.randint(2**62, (), dtype=torch.int64)) if case.dropout else 0
        right = 0 if case.causal else -1
        full = reference.Options(
            q.shape[-1] ** -0.5, -1, right, softcap=case.softcap, dropout_p=case.dropout,
            max_seqlen_q=q.shape[2], max_seqlen_k=k.shape[2], seed=seed,
        )  # fmt: skip
        return reference.attend(q, k, v, None, None, None, None, full)[0]

    def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = q @ k.mT * q.shape[-1] ** -0.5
        s = case.softcap * torch.tanh(s / case.softcap)
        upper = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1)
        return s.masked_fill(upper, -torch.inf).softmax(-1) @ v

    def with_backend(backend: SDPBackend) -> Function:
        def function(**given: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return theirs(**given)

        return function

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block_mask = None
        if causal:
            block_mask = create_block_mask(
                lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], q.device
            )
        compiled = torch.compile(flex_attention)
        return compiled(q, k, v, block_mask=block_mask, enable_gqa=grouped)

    def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_func

        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(*heads_last, dropout_p=case.dropout, causal=causal).transpose(1, 2)

    peers = {
        "SDPA flash": with_backend(SDPBackend.FLASH_ATTENTION),
        "SDPA math": with_backend(SDPBackend.MATH),
        "FlexAttention": flex,
        "flash-attn": flash_attn,
    }
    return _work(
        case,
        ours,
        unfused if case.softcap else theirs,
        tensors,
        4.0 * case.batch * case.heads * case.head_dim * _visible(case),
        exact=plain if case.dropout else None,
        compared=plain if case.dropout else None,
        peers={name: peers[name] for name in case.peers},
    )


def _varlen(case: Case, device: torch.device) -> Workload:
    """Real sentences one after the other, against the same padded and masked."""
    lengths = torch.tensor([english for english, _ in real_lengths()[: case.batch]])
    longest, total = int(lengths.max()), int(lengths.sum())
    bounds = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    real = (torch.arange(longest) < lengths[:, None]).to(device)
    tensors = {
        name: torch.randn(total, case.heads, case.head_dim).to(device, case.dtype)
        for name in ("q", "k", "v")
    }
    padded = {}
    for name, x in tensors.items():
        full = x.new_zeros(case.batch, longest, *x.shape[1:])
        full[real] = x
        padded[name] = full.transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fastseq.flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, real[:, None, None])

    def theirs_of_packed(**given: Tensor) -> Tensor:
        full = []
        for x in given.values():
            rows = x.new_zeros(case.batch, longest, *x.shape[1:])
            full.append(rows.masked_scatter(real[..., None, None], x).transpose(1, 2))
        return theirs(*full).transpose(1, 2)[real]

    flops = 4.0 * case.heads * case.head_dim * float((lengths.double() ** 2).sum())
    work = _work(case, ours, theirs_of_packed, tensors, flops)
    leaves = _moved(padded, train=case.train)
    work.timed[case.baseline] = _step(
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
    return _work(case, ours, theirs, tensors, flops)


# ---- modules ------------------------------------------------------------------------------------


def _modules(
    case: Case,
    ours: nn.Module,
    theirs: nn.Module,
    call: Callable[[nn.Module, Tensor], Tensor],
    flops: float,
    device: torch.device,
) -> Workload:
    """The gradients of the input and of all parameters, where the case trains."""
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(case.batch, case.length, case.heads * case.head_dim).to(device, case.dtype)
    modules = [m.to(device, case.dtype).train(case.train) for m in (ours, theirs)]
    modules.append(copy.deepcopy(modules[1]).double())

    def leaves_of(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"input": x, **dict(module.named_parameters())}

    def results() -> tuple[Results, Results, Results]:
        found = []
        for module in modules:
            given = x.to(next(module.parameters()).dtype).requires_grad_()
            leaves = leaves_of(module, given)
            if case.train:
                found.append(_results(lambda m=module, x=given: call(m, x), leaves, True))
            else:
                with torch.no_grad():
                    found.append(_results(lambda m=module, x=given: call(m, x), leaves, False))
        return found[0], found[1], found[2]

    def timed(module: nn.Module) -> Callable[[], object]:
        given = x.detach().requires_grad_(case.train)
        leaves = list(leaves_of(module, given).values())
        return _step(lambda: call(module, given), leaves, case.train)

    elements = 2 * x.numel() + sum(p.numel() for p in theirs.parameters())
    return Workload(
        {"fastseq": timed(modules[0]), case.baseline: timed(modules[1])},
        results,
        flops * (3 if case.train else 1),
        float(elements * case.dtype.itemsize * (2 if case.train else 1)),
    )


def _attention_flops(case: Case) -> float:
    width = case.heads * case.head_dim
    tokens = case.batch * case.length
    return 8.0 * tokens * width**2 + 4.0 * tokens * case.length * width


def _multihead(case: Case, device: torch.device) -> Workload:
    width = case.heads * case.head_dim
    ours, theirs = (
        module(width, case.heads, batch_first=True)
        for module in (fastseq.MultiheadAttention, nn.MultiheadAttention)
    )

    def call(module: nn.Module, x: Tensor) -> Tensor:
        out, weights = module(x, x, x, need_weights=case.need_weights)
        if weights is None or (case.train and not case.learned_weights):
            return out
        return torch.cat([out, weights.to(out.dtype)], -1)

    return _modules(case, ours, theirs, call, _attention_flops(case), device)


def _encoder(case: Case, device: torch.device) -> Workload:
    """Two layers; padded batches against torch's, which packs them itself where it can."""
    width, layers = case.heads * case.head_dim, 2
    lengths = torch.full((case.batch,), case.length)
    if case.padded:
        spread = round(2 * case.padded * case.length)
        lengths = case.length - torch.randint(0, spread + 1, (case.batch,))
        lengths[0] = case.length
    padding = (torch.arange(case.length) >= lengths[:, None]).to(device)
    options = {"skip_padding": True} if case.padded and case.train else {}
    # Not with relu: a number so near 0 that rounding turns its sign would be an error of gradients.
    sizes = {"d_model": width, "nhead": case.heads, "dim_feedforward": 4 * width}
    layer = {**sizes, "dropout": 0.0, "activation": "gelu", "batch_first": True}
    ours = fastseq.TransformerEncoder(fastseq.TransformerEncoderLayer(**layer), layers, **options)
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), layers)

    def call(module: nn.Module, x: Tensor) -> Tensor:
        if not case.padded:
            return module(x)
        # What stands at padding is nobody's business: ours and torch's differ there in training.
        out = module(x, src_key_padding_mask=padding)
        return out.masked_fill(padding[..., None], 0)

    tokens = float(lengths.sum())
    flops = layers * (24 * tokens * width**2 + 4 * float((lengths.double() ** 2).sum()) * width)
    return _modules(case, ours, theirs, call, flops, device)


def _additive(case: Case, device: torch.device) -> Workload:
    """Of projected queries and keys; unfused it holds all of (batch, queries, keys, dim)."""
    tensors = {
        "query": torch.randn(case.batch, case.length, case.head_dim),
        "key": torch.randn(case.batch, case.num_keys, case.head_dim),
        "value": torch.randn(case.batch, case.num_keys, case.head_dim),
        "v": torch.randn(case.head_dim) * case.head_dim**-0.5,
    }
    tensors = {name: x.to(device, case.dtype) for name, x in tensors.items()}

    def ours(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
        return fastseq.additive_attention(query, key, value, None, None, v)

    def theirs(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
        scores = torch.tanh(query[:, :, None] + key[:, None]) @ v
        return scores.softmax(-1) @ value

    pairs = case.batch * case.length * case.num_keys
    return _work(case, ours, theirs, tensors, 6.0 * pairs * case.head_dim)
