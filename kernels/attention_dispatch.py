"""Tiles of the attention kernels, and into how many parts decoding splits a cache.

Knows sizes and device limits only; no tensor, no Triton.
"""

import os
from dataclasses import dataclass, replace

from .device import Limits, power_of_two


@dataclass(frozen=True)
class Tile:
    BM: int  # queries
    BN: int  # keys
    num_warps: int
    num_stages: int
    TMA: bool = False  # whether descriptors fetch what a program walks


@dataclass(frozen=True)
class Heads:
    dim: int
    value_dim: int
    itemsize: int
    dropout: bool = False
    aligned: bool = False  # whether each row starts at a multiple of 16 bytes, as TMA needs

    @property
    def width(self) -> int:
        """Of a head in a tile: at least what a product on tensor cores takes."""
        return power_of_two(self.dim, 16)

    @property
    def value_width(self) -> int:
        return power_of_two(self.value_dim, 16)


# By the kernel, the size of an element and the largest width served: the best guess first, and last
# one that fits every device. Products of float32 hold their operands in registers: smaller tiles.
_TILES: dict[tuple[str, int, int], tuple[Tile, ...]] = {
    ("forward", 2, 64): (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("forward", 2, 128): (Tile(128, 64, 8, 3), Tile(128, 128, 8, 2), Tile(64, 32, 4, 2)),
    ("forward", 2, 256): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(32, 16, 4, 1)),
    ("forward", 4, 64): (Tile(64, 32, 4, 2), Tile(64, 64, 8, 2), Tile(32, 32, 4, 1)),
    ("forward", 4, 128): (Tile(32, 32, 4, 2), Tile(64, 32, 4, 1), Tile(32, 16, 4, 1)),
    ("forward", 4, 256): (Tile(16, 32, 8, 1), Tile(16, 16, 4, 1)),
    ("keys", 2, 64): (Tile(32, 128, 8, 2), Tile(64, 128, 8, 2), Tile(32, 64, 8, 1)),
    ("keys", 2, 128): (Tile(32, 64, 8, 2), Tile(64, 64, 8, 2), Tile(32, 32, 4, 1)),
    ("keys", 2, 256): (Tile(32, 32, 4, 1), Tile(32, 64, 8, 1), Tile(16, 16, 4, 1)),
    ("keys", 4, 64): (Tile(32, 32, 8, 2), Tile(32, 64, 8, 1), Tile(16, 32, 4, 1)),
    ("keys", 4, 128): (Tile(32, 32, 8, 1), Tile(16, 16, 4, 1)),
    ("keys", 4, 256): (Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
    ("queries", 2, 64): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 1)),
    ("queries", 2, 128): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(32, 32, 4, 1)),
    ("queries", 2, 256): (Tile(64, 32, 8, 2), Tile(32, 32, 8, 1), Tile(16, 16, 4, 1)),
    ("queries", 4, 64): (Tile(32, 32, 4, 2), Tile(64, 32, 8, 1), Tile(32, 16, 4, 1)),
    ("queries", 4, 128): (Tile(32, 32, 8, 1), Tile(16, 16, 4, 1)),
    ("queries", 4, 256): (Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
}


def _shared(kernel: str, tile: Tile, heads: Heads) -> int:
    """Bytes of shared memory: what a program owns, and a stage of what it walks for each stage."""
    both = heads.width + heads.value_width
    if kernel == "forward":
        elements = tile.BM * heads.width + tile.num_stages * tile.BN * both
    else:
        own, walked = (tile.BN, tile.BM) if kernel == "keys" else (tile.BM, tile.BN)
        elements = own * both + tile.num_stages * walked * both + tile.BM * tile.BN
    return elements * heads.itemsize


def tiles(kernel: str, heads: Heads, limits: Limits) -> tuple[Tile, ...]:
    """Those that fit, the best guess first; FASTSEQ_ATTENTION_TILE asks for one, by BM,BN or by its
    place among them."""
    wanted = os.environ.get("FASTSEQ_ATTENTION_TILE", "")
    if "," in wanted:
        rows, columns = (int(size) for size in wanted.split(","))
        return (Tile(rows, columns, 4, 1, limits.tma and heads.aligned),)
    known = _fitting(kernel, heads, limits)
    return (known[int(wanted) % len(known)],) if wanted else known


def _fitting(kernel: str, heads: Heads, limits: Limits) -> tuple[Tile, ...]:
    if kernel == "delta":
        return (Tile(32, 32, 4, 1),)
    if kernel in ("mask", "weights"):
        return (Tile(64, 64, 8, 2) if heads.itemsize == 2 else Tile(32, 32, 4, 2),)
    width = max(heads.width, heads.value_width, 64)
    known = _TILES[kernel, heads.itemsize, width]
    if heads.dropout and kernel != "forward":  # its words take registers beside other tiles
        rows = 32 if kernel == "keys" else 64
        known = tuple(t for t in known if rows >= t.BM) or known[-1:]
    if limits.warp == 64 and kernel == "keys":  # there, loads ahead wait in registers
        known = tuple(replace(t, num_stages=1) for t in known)
    known = tuple(t for t in known if _shared(kernel, t, heads) <= limits.shared) or known[-1:]
    if limits.tma and heads.aligned:
        known = (*(replace(t, TMA=True) for t in known), known[0])
    return known


def parts_of_mask(own: int, summed: int, limits: Limits) -> int:
    """Parts into which the sum of ``summed`` tiles for each of a mask's ``own`` tiles is cut."""
    wanted = 4 * limits.multiprocessors // max(own, 1)
    return max(1, min(wanted, summed))


def decode_tile(rows: int, heads: Heads, limits: Limits) -> Tile:
    """For ``rows`` queries of all heads that share a key head."""
    if "," in os.environ.get("FASTSEQ_ATTENTION_TILE", ""):
        return tiles("forward", heads, limits)[0]
    width = max(heads.width, heads.value_width)
    if heads.itemsize == 4:
        return Tile(min(power_of_two(rows, 16), 32 if width <= 128 else 16), 32, 4, 2)
    tile = Tile(min(power_of_two(rows, 16), 64), 64 if width <= 128 else 32, 4, 3)
    return tile if _shared("forward", tile, heads) <= limits.shared else replace(tile, num_stages=1)


def decode_splits(programs: int, steps: int, limits: Limits) -> int:
    """Parts of a cache of ``steps`` tiles, so that programs fill the device twice."""
    return max(1, min(2 * limits.multiprocessors // max(programs, 1), steps, 128))
