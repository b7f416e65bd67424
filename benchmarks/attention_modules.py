"""The attention suite's modules: multi-head attention and encoder layers."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastseq

from .attention_steps import results_of, step
from .cases_attention import Case
from .suite import Results, Workload


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
    shape = case.batch, case.length, case.heads * case.head_dim
    x = torch.randn(shape, device=device).to(case.dtype)
    modules = [m.to(device, case.dtype).train(case.train) for m in (ours, theirs)]
    modules.append(copy.deepcopy(modules[1]).double())

    def leaves_of(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"input": x, **dict(module.named_parameters())}

    def results() -> tuple[Results, Results, Results]:
        found = []
        for module in modules:
            given = x.to(next(module.parameters()).dtype).requires_grad_()
            leaves = leaves_of(module, given)
            found.append(results_of(lambda m=module, x=given: call(m, x), leaves, case))
        return found[0], found[1], found[2]

    def timed(module: nn.Module) -> Callable[[], object]:
        given = x.detach().requires_grad_(case.train)
        leaves = list(leaves_of(module, given).values())
        return step(lambda: call(module, given), leaves, case.train)

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


def multihead(case: Case, device: torch.device) -> Workload:
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


def encoder(case: Case, device: torch.device) -> Workload:
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
