"""Batching rules for torch.func.vmap."""

import torch
from torch import Tensor


def loop_over(op):
    """The rule that calls ``op`` once an example and stacks the results."""

    def rule(info, in_dims, *arguments):
        def pick(x, dim, i):
            if isinstance(x, (list, tuple)) and isinstance(dim, (list, tuple)):
                return [pick(y, e, i) for y, e in zip(x, dim, strict=True)]
            return x if dim is None else x.select(dim, i)

        each = [
            op(*(pick(x, dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        kind = type(each[0])
        stacked = kind(torch.stack(parts) for parts in zip(*each, strict=True))
        return stacked, kind(0 for _ in stacked)

    return rule


def _is_batched(dims) -> bool:
    return any(map(_is_batched, dims)) if isinstance(dims, (list, tuple)) else dims is not None


def vmap_layer(info, in_dims, *arguments):
    """``rnn_layer`` over V examples: they join the batch, or are looped over where weights differ.

    The examples of a dense batch with shared weights are one batch of V·B sequences.
    """
    (input, batch_sizes, h0, c0), rest = arguments[:4], arguments[4:]
    if batch_sizes is not None or _is_batched(in_dims[4:]):
        return loop_over(torch.ops.fastseq.rnn_layer)(info, in_dims, *arguments)
    size = info.batch_size

    def leading(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

    def fold_state(x: Tensor | None, dim: int | None) -> Tensor | None:
        """(V, D, B, width) to (D, V·B, width)."""
        return None if x is None else leading(x, dim).transpose(0, 1).flatten(1, 2)

    state = leading(h0, in_dims[2])
    batch = state.shape[2]
    rows = leading(input, in_dims[0]).unflatten(1, (-1, batch)).transpose(0, 1).flatten(0, 2)
    output, h_n, c_n, *saved = torch.ops.fastseq.rnn_layer(
        rows, None, fold_state(h0, in_dims[2]), fold_state(c0, in_dims[3]), *rest
    )

    def unfold(x: Tensor) -> Tensor:
        """(T·V·B, …) to (V, T·B, …)."""
        if x.numel() == 0:
            return x.expand(size, *x.shape)
        return x.unflatten(0, (-1, size, batch)).transpose(0, 1).flatten(1, 2)

    def unfold_state(x: Tensor) -> Tensor:
        """(D, V·B, width) to (V, D, B, width)."""
        if x.numel() == 0:
            return x.expand(size, *x.shape)
        return x.unflatten(1, (size, batch)).transpose(0, 1)

    return (unfold(output), unfold_state(h_n), unfold_state(c_n), *map(unfold, saved)), (0,) * 6
