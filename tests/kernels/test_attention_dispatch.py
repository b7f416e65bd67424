"""Tiles of the attention kernels and how they are routed to; no Triton, no GPU."""

import pytest
import torch

from fastseq import kernels
from fastseq.kernels.attention_dispatch import (
    Heads,
    decode_splits,
    decode_tile,
    parts_of_mask,
    tiles,
)
from fastseq.kernels.device import Limits
from fastseq.ops import attention as ops

DEVICES = {
    "A100": Limits(108, 163 * 1024),
    "H100": Limits(132, 227 * 1024),
    "MI300": Limits(304, 64 * 1024, 64),
}


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSEQ_ATTENTION_TILE", raising=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", ["forward", "keys", "queries", "mask", "delta"])
def test_tiles(kernel: str, itemsize: int, device: str) -> None:
    for dim, value_dim in ((1, 1), (64, 64), (80, 24), (24, 128), (192, 128), (256, 256)):
        for dropout in (False, True):
            heads = Heads(dim, value_dim, itemsize, dropout)
            assert heads.width >= max(dim, 16) and heads.value_width >= max(value_dim, 16)
            found = tiles(kernel, heads, DEVICES[device])
            assert len(set(found)) == len(found) >= 1
            for tile in found:
                # What products on tensor cores take, and dropout's words: four to a counter.
                assert tile.BM >= 16 and tile.BN >= 16 and tile.num_warps in (4, 8)
                assert tile.BM & (tile.BM - 1) == tile.BN & (tile.BN - 1) == 0
                if kernel in ("forward", "keys"):
                    own = tile.BM * heads.width
                    if kernel == "keys":
                        own = tile.BN * (heads.width + heads.value_width)
                    assert own * itemsize <= DEVICES[device].shared


def test_larger_devices_get_larger_tiles() -> None:
    heads = Heads(256, 256, 2)
    sizes = {
        name: max(t.BM * t.BN for t in tiles("forward", heads, limits))
        for name, limits in DEVICES.items()
    }
    assert sizes["H100"] > sizes["A100"] > sizes["MI300"]


def test_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSEQ_ATTENTION_TILE", "16,32")
    for kernel in ("forward", "keys", "queries", "mask", "delta"):
        (tile,) = tiles(kernel, Heads(64, 64, 2), DEVICES["H100"])
        assert (tile.BM, tile.BN) == (16, 32)


def test_decoding_fills_the_device() -> None:
    limits = DEVICES["H100"]
    assert decode_splits(1, 1000, limits) == 128
    assert decode_splits(8, 1000, limits) * 8 <= 2 * limits.multiprocessors
    assert decode_splits(8, 1000, limits) * 8 > limits.multiprocessors
    assert decode_splits(8, 3, limits) == 3  # no more than there are tiles
    assert decode_splits(5000, 1000, limits) == 1
    # The queries of all heads that share a key head are rows of one tile.
    assert [decode_tile(n, Heads(64, 64, 2), limits).BM for n in (1, 16, 17, 300)] == [
        16, 16, 32, 64,
    ]  # fmt: skip


def test_small_masks_are_summed_in_parts() -> None:
    limits = DEVICES["H100"]
    assert parts_of_mask(1, 10**6, limits) == 4 * limits.multiprocessors
    assert parts_of_mask(1, 5, limits) == 5
    assert parts_of_mask(10**5, 64, limits) == 1


@pytest.mark.parametrize("first", [0, 2])
def test_what_triton_lacks_goes_to_plain_torch(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(kernels, "attention_forward", lambda *_: "triton")
    run = ops._on_cuda("attention_forward", lambda *_: "plain", first)

    def served(dtype: torch.dtype, dim: int, value_dim: int) -> str:
        q, v = torch.empty(1, 1, 2, dim, dtype=dtype), torch.empty(1, 1, 2, value_dim, dtype=dtype)
        wide_mask = torch.empty(1, 1, 2, 1000)
        return run(*[wide_mask] * first, q, q, v, wide_mask, 1.0)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert served(dtype, 256, 1) == "triton"
        assert served(dtype, 257, 64) == served(dtype, 64, 257) == "plain"
    assert served(torch.float64, 64, 64) == "plain"
