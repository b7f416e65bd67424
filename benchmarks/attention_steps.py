"""Turns functions of tensors into what a suite runs: the call or its gradients, and the results."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .cases_attention import Case
from .suite import Results, Workload

SEED = 20261
Function = Callable[..., Tensor]


def step(function: Callable[[], Tensor], leaves: Sequence[Tensor], train: bool):
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


def results_of(function: Callable[[], Tensor], leaves: dict[str, Tensor], case: Case) -> Results:
    """What is compared, made as it is timed. Gradients start from numbers that every type has."""
    if not case.train:
        with torch.no_grad():
            return {"output": function()}
    out = function()
    generator = torch.Generator(out.device).manual_seed(SEED)
    upstream = torch.randn(out.shape, generator=generator, device=out.device).to(case.dtype)
    grads = torch.autograd.grad(out, list(leaves.values()), upstream.to(out.dtype))
    return {"output": out.detach(), **{f"grad {name}": g for name, g in zip(leaves, grads)}}


def leaves_of(
    tensors: dict[str, Tensor], train: bool, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Fresh ones."""
    return {
        name: x.detach().to(dtype or x.dtype).requires_grad_(train) for name, x in tensors.items()
    }


def workload(
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
            leaves = leaves_of(tensors, case.train, dtype)
            torch.manual_seed(SEED)
            found.append(results_of(lambda f=function, x=leaves: f(**x), leaves, case))
        return found[0], found[1], found[2]

    def timed(function: Function) -> Callable[[], object]:
        leaves = leaves_of(tensors, case.train)
        return step(lambda: function(**leaves), list(leaves.values()), case.train)

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
