"""Philox4x32-10, the counter-based generator behind every random mask of the package.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The
same (seed, counter) gives the same bits here, in C++ and in Triton, so masks do not depend on the
device, the number of threads, or on whether they are drawn in forward or again in backward.
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def _multiply(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of factor·x for 32-bit values held in int64."""
    low, high = factor * (x & 0xFFFF), factor * (x >> 16)
    carry = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (carry >> 32), carry & _LOW


def philox(seed: int, counter: Tensor, stream: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (in int64) a 64-bit counter; ``stream`` is the third counter word."""
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.full_like(c0, stream), torch.zeros_like(c0)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def threshold(probability: float) -> int:
    """A word below this is an event of the given probability."""
    return min(int(probability * 2**32), _LOW)


def dropout_mask(seed: int, like: Tensor, probability: float) -> Tensor:
    """Inverted-dropout factors, 0 or 1/(1-p), of ``like``'s shape, dtype and device."""
    if probability >= 1:
        return like.new_zeros(like.shape)
    index = torch.arange(like.numel(), device=like.device).view(like.shape)
    kept = philox(seed, index, stream=1)[0] >= threshold(probability)
    return kept.to(like.dtype) / (1 - probability)
