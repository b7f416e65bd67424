"""Tiles of the attention kernels, and into how many parts decoding splits a cache.

Knows sizes and device limits only; no tensor, no Triton.
"""

import os
from dataclasses import dataclass

from .device import Limits, power_of_two

MAX_DIM = 256  # of a head


@dataclass(frozen=True)
class Tile:
    BM: int  # queries
    BN: int  # keys
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Heads:
    dim: int
    value_dim: int
    itemsize: int

    @property
    def width(self) -> int:
        """Of a head in a tile: at least what a product on tensor cores takes."""
        return power_of_two(self.dim, 16)

    @property
    def value_width(self) -> int:
        return power_of_two(self.value_dim, 16)


# By the kernel, the size of an element and the largest width served; the best guess first.
_TILES: dict[tuple[str, int, int], tuple[Tile, ...]] = {
    ("forward", 2, 64): (Tile(128, 64, 4, 3), Tile(128, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("forward", 2, 128): (Tile(128, 64, 8, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 2)),
    ("forward", 2, 256): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 1)),
    ("forward", 4, 64): (Tile(64, 64, 4, 2), Tile(64, 32, 4, 1)),
    ("forward", 4, 128): (Tile(64, 32, 8, 2), Tile(64, 32, 4, 1)),
    ("forward", 4, 256): (Tile(32, 32, 8, 1), Tile(16, 16, 4, 1)),
    ("keys", 2, 64): (Tile(64, 128, 8, 2), Tile(64, 64, 4, 2), Tile(32, 128, 4, 2)),
    ("keys", 2, 128): (Tile(64, 128, 8, 2), Tile(64, 64, 8, 2), Tile(32, 64, 4, 1)),
    ("keys", 2, 256): (Tile(32, 64, 8, 1), Tile(32, 32, 8, 1), Tile(16, 32, 4, 1)),
    ("keys", 4, 64): (Tile(32, 64, 8, 1), Tile(32, 32, 4, 1)),
    ("keys", 4, 128): (Tile(32, 32, 8, 1), Tile(16, 32, 4, 1)),
    ("keys", 4, 256): (Tile(16, 32, 8, 1), Tile(16, 16, 4, 1)),
    ("queries", 2, 64): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(128, 32, 4, 2)),
    ("queries", 2, 128): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 4, 1)),
    ("queries", 2, 256): (Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 16, 4, 1)),
    ("queries", 4, 64): (Tile(64, 32, 8, 1), Tile(32, 32, 4, 1)),
    ("queries", 4, 128): (Tile(32, 32, 8, 1), Tile(32, 16, 4, 1)),
    ("queries", 4, 256): (Tile(32, 16, 8, 1), Tile(16, 16, 4, 1)),
}


def tiles(kernel: str, heads: Heads, limits: Limits) -> tuple[Tile, ...]:
    """Those that fit, the best guess first; FASTSEQ_ATTENTION_TILE=BM,BN asks for one."""
    if wanted := os.environ.get("FASTSEQ_ATTENTION_TILE"):
        rows, columns = (int(size) for size in wanted.split(","))
        return (Tile(rows, columns, 4, 1),)
    if kernel == "delta":
        return (Tile(32, 32, 4, 1),)
    if kernel == "mask":
        side = 64 if heads.itemsize == 2 and heads.width <= 128 else 32
        return (Tile(side, side, 4, 1),)
    width = max(heads.width, heads.value_width, 64)
    return _TILES[kernel, heads.itemsize, width]


def parts_of_mask(own: int, summed: int, limits: Limits) -> int:
    """Parts into which the sum of ``summed`` tiles for each of a mask's ``own`` tiles is cut."""
    wanted = 4 * limits.multiprocessors // max(own, 1)
    return max(1, min(wanted, summed))
