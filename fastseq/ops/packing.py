"""Which rows of a padded batch are real, as an operator: their number depends on the data."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define(
    "packing(Tensor lengths, SymInt steps, bool batch_first) "
    "-> (Tensor rows, Tensor batch_sizes, Tensor order, Tensor restore)"
)


class Packing(NamedTuple):
    """Where a padded batch's rows go in packed order.

    rows: (N,) int64, for each packed row its place in the padded batch, flattened over its first
        two dimensions. batch_sizes: (longest,) int64 on the CPU. order, restore: (B,) int64, the
        permutation to decreasing lengths, as ``PackedSequence.sorted_indices``, and back.
    """

    rows: Tensor
    batch_sizes: Tensor
    order: Tensor
    restore: Tensor


def _packing(lengths: Tensor, steps: int, batch_first: bool) -> tuple[Tensor, ...]:
    lengths = lengths.cpu()
    ordered, order = torch.sort(lengths, descending=True, stable=True)
    longest, shortest = int(ordered[0]), int(ordered[-1])
    if shortest <= 0:
        raise RuntimeError(
            "Length of all samples has to be greater than 0, "
            "but found an element in 'lengths' that is <= 0"
        )
    if longest > steps:
        raise ValueError(
            "Expected total_length to be at least the length of the longest sequence in input, "
            f"but got total_length={steps} and max sequence length being {longest}"
        )
    real = torch.arange(longest)[:, None] < ordered  # (longest, B)
    time, place = real.nonzero(as_tuple=True)
    sequence = order[place]
    batch = lengths.shape[0]
    rows = sequence * steps + time if batch_first else time * batch + sequence
    return rows, real.sum(1), order, torch.argsort(order)


def _fake_packing(lengths: Tensor, steps: int, batch_first: bool) -> tuple[Tensor, ...]:
    context = torch.library.get_ctx()
    rows, longest = context.new_dynamic_size(), context.new_dynamic_size()
    shapes = (rows, longest, lengths.shape[0], lengths.shape[0])
    return tuple(torch.empty(n, dtype=torch.int64, device="cpu") for n in shapes)


_library.impl("packing", _packing, "CompositeExplicitAutograd")
torch.library.register_fake("fastseq::packing", _fake_packing, lib=_library)


def packing(
    lengths: Tensor | Sequence[int], batch: int, steps: int, batch_first: bool, device: torch.device
) -> Packing | None:
    """How to pack a padded batch of these lengths; None where every sequence is full.

    Args:
        lengths: (batch,) integers in any order, each from 1 to ``steps``; a tensor on any device,
            or a list.
        batch, steps: the padded batch's size, (batch, steps, …) if ``batch_first``, else (steps,
            batch, …).
        device: of the index tensors other than batch_sizes.
    """
    if isinstance(lengths, Tensor):
        lengths = lengths.to(torch.int64)
    else:
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if lengths.dim() != 1:
        raise RuntimeError(
            "'lengths' argument should be a 1D CPU int64 tensor, "
            f"but got {lengths.dim()}D {lengths.device.type} Long tensor"
        )
    if lengths.shape[0] != batch:
        raise RuntimeError(
            "Expected `len(lengths)` to be equal to batch_size, "
            f"but got {lengths.shape[0]} (batch_size={batch})"
        )
    if not torch.compiler.is_compiling():
        if batch == 0:
            return None
        lengths = lengths.cpu()
        if bool((lengths == steps).all()):
            return None
    rows, batch_sizes, order, restore = torch.ops.fastseq.packing(lengths, steps, batch_first)
    return Packing(rows.to(device), batch_sizes, order.to(device), restore.to(device))
