"""Dropout whose random bits cost less on a CPU, where torch draws a number for every element."""

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """``torch.nn.functional.dropout``; on the CPU p is rounded to a multiple of 2⁻¹⁶.

    There one random int64 of torch's generator decides about four elements.
    """
    if not training or p == 0:
        return x
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = round(p * _LEVELS)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` by ``dropout``."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)
