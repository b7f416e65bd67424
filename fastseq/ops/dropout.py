"""Recurrent dropout's random mask as an operator: Triton's on CUDA, plain PyTorch elsewhere."""

import torch
from torch import Tensor

from ..reference import philox
from .registration import register

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define("dropout_mask(int seed, Tensor like, float probability) -> Tensor")


def _fake_mask(seed: int, like: Tensor, probability: float) -> Tensor:
    return like.new_empty(like.shape)


def _vmap(info, in_dims, seed, like, probability):
    """One mask for all examples: ``like`` tells no more than a shape."""
    return dropout_mask(seed, like.select(in_dims[1], 0), probability), None


register(_library, "dropout_mask", philox.dropout_mask, _fake_mask)
# Of no number of ``like`` is there a gradient.
_library.impl("dropout_mask", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_vmap("fastseq::dropout_mask", _vmap, lib=_library)

dropout_mask = torch.ops.fastseq.dropout_mask.default
