"""Batching rules for torch.func.vmap, and for the older one of batched gradients."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

_is_legacy = torch._C._functorch.is_legacy_batchedtensor


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


def is_batched(tensors) -> bool:
    """Whether autograd runs backward for many gradients at once (``is_grads_batched``)."""
    return any(map(_is_legacy, [x for x in tensors if x is not None]))


def loop_over_batched(op):
    """The rule for ``is_grads_batched`` and ``jacobian(vectorize=True)``, for a returned list.

    torch's own loop does not take operators with lists of tensors.
    """

    def rule(*arguments):
        flat, spec = tree_flatten(arguments)
        places = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and _is_legacy(x)]
        level = next(n for n in range(1, 64) if _size_at(flat[places[0]], n))
        sizes = {i: size for i in places if (size := _size_at(flat[i], level))}
        size = next(iter(sizes.values()))
        rows = {i: torch._remove_batch_dim(flat[i], level, size, 0).unbind() for i in sizes}
        each = []
        for n in range(size):
            for i, row in rows.items():
                flat[i] = row[n]
            each.append(op(*tree_unflatten(flat, spec)))
        return [torch._add_batch_dim(torch.stack(r), 0, level) for r in zip(*each, strict=True)]

    return rule


def _size_at(x: Tensor, level: int) -> int:
    """The batch's size, of a tensor that is batched at this level; else 0."""
    sizes = {torch._remove_batch_dim(x, level, n, 0).shape[0] for n in (1, 2)}
    return sizes.pop() if len(sizes) == 1 else 0  # of another tensor, as many as were asked for


def _batches(dims) -> bool:
    return any(map(_batches, dims)) if isinstance(dims, (list, tuple)) else dims is not None


def vmap_layer(info, in_dims, *arguments):
    """``rnn_layer`` over V examples: they join the batch, or are looped over where weights differ.

    The examples of a dense batch with shared weights are one batch of V·B sequences.
    """
    (input, batch_sizes, h0, c0), rest = arguments[:4], arguments[4:]
    if batch_sizes is not None or _batches(in_dims[4:]):
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
