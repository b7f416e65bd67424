"""Tiles of the attention kernels, and what goes elsewhere; no GPU."""

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
from fastseq.reference import attention as reference

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


def test_override_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, limits = Heads(64, 64, 2, aligned=True), Limits(132, 227 * 1024, tma=True)
    known = tiles("forward", heads, limits)
    assert len(known) == 4 and [tile.TMA for tile in known] == [True] * 3 + [False]
    decode = decode_tile(4, heads, limits)
    for n in range(6):
        monkeypatch.setenv("FASTSEQ_ATTENTION_TILE", str(n))
        assert tiles("forward", heads, limits) == (known[n % 4],)
        assert decode_tile(4, heads, limits) == decode


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


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))
@pytest.mark.parametrize(
    ("dtype", "dim", "value_dim"),
    [(torch.float64, 8, 8), (torch.float32, 257, 8), (torch.float16, 8, 300)],
)
def test_what_triton_lacks_goes_to_plain_torch(
    dtype: torch.dtype, dim: int, value_dim: int
) -> None:
    q, k = torch.randn(1, 2, 3, dim, dtype=dtype), torch.randn(1, 1, 9, dim, dtype=dtype)
    v = torch.randn(1, 1, 9, value_dim, dtype=dtype)
    context = (None,) * 5 + (dim**-0.5, -1, 0, True, 0.0, 0.0, 3, 9)
    # Without a device, a launch would raise.
    out, *sums = kernels.attention_forward(q, k, v, *context)
    expected = reference.attention_forward(q, k, v, *context)
    assert torch.equal(out, expected[0]) and torch.equal(sums[0], expected[1])
    grads = kernels.attention_backward(out, None, q, k, v, out, *sums, *context, False)
    expected = reference.attention_backward(out, None, q, k, v, *expected, *context, False)
    torch.testing.assert_close(grads, expected)
    lengths = torch.tensor([7], dtype=torch.int32)
    options = (lengths, None, None, dim**-0.5, -1, 0, 0.0)
    assert torch.equal(
        kernels.attention_decode(q, k, v, *options)[0],
        reference.attention_decode(q, k, v, *options)[0],
    )
