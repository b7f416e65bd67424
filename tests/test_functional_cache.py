"""flash_attn_with_kvcache: what is wrong is said before the first byte of the cache is written."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.functional import flash_attn_func, flash_attn_with_kvcache

B, HEADS, KEY_HEADS, D, SIZE, BLOCKS, WIDTH = 3, 4, 2, 8, 4, 12, 3
CAPACITY = SIZE * WIDTH
HELD = [5, 0, 7]


def int32(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def call(paged: bool = False, new: int = 2) -> dict[str, Any]:
    """A good call: HELD tokens of each sequence, and as many new ones as queries."""
    shape = (BLOCKS, SIZE, KEY_HEADS, D) if paged else (B, CAPACITY, KEY_HEADS, D)
    arguments = {
        "q": torch.randn(B, new, HEADS, D),
        "k_cache": torch.randn(shape),
        "v_cache": torch.randn(shape),
        "k": torch.randn(B, new, KEY_HEADS, D),
        "v": torch.randn(B, new, KEY_HEADS, D),
        "cache_seqlens": int32(*HELD),
        "causal": True,
    }
    if paged:
        arguments["block_table"] = torch.arange(BLOCKS, dtype=torch.int32)[: B * WIDTH].view(B, -1)
    return arguments


def table(*entries: tuple[int, int, int]) -> Tensor:
    """The good call's, with (sequence, place, page) put in."""
    result = call(paged=True)["block_table"]
    for sequence, place, page in entries:
        result[sequence, place] = page
    return result


FLOATS = torch.randn(B)
ROTARY = torch.randn(CAPACITY, D // 2)
SHARED = torch.randn(B, CAPACITY, KEY_HEADS, D)
BAD: dict[str, tuple[type[Exception], str, bool, dict[str, Any]]] = {
    "page-below": (
        ValueError,
        r"block_table should be from 0 to 11.*\[3, -1\].*6 tokens of sequence 1",
        True,
        {"block_table": table((1, 0, 3), (1, 1, -1)), "cache_seqlens": int32(5, 4, 7)},
    ),
    "page-above": (
        ValueError,
        "block_table should be from 0 to 11",
        True,
        {"block_table": table((0, 0, 12))},
    ),
    "page-written-twice": (
        ValueError,
        "written once, got page 1 of sequence 0 2 times",
        True,
        {"block_table": table((1, 0, 1))},
    ),
    "page-written-and-read": (
        ValueError,
        "written once, got page 1 of sequence 0 2 times",
        True,
        {"block_table": table((2, 0, 1))},
    ),
    "page-twice-in-one": (
        ValueError,
        "written once, got page 1 of sequence 0 2 times",
        True,
        {"block_table": table((0, 0, 1))},
    ),
    "table-1d": (
        ValueError,
        r"block_table should have shape \(batch, blocks\)",
        True,
        {"block_table": int32(0, 1, 2)},
    ),
    "table-batch": (
        ValueError,
        "block_table should have shape .* batch 3",
        True,
        {"block_table": table()[:2]},
    ),
    "table-int64": (
        TypeError,
        "block_table should be torch.int32",
        True,
        {"block_table": table().long()},
    ),
    "table-and-rows": (
        ValueError,
        "cache_batch_idx should not be given with",
        True,
        {"cache_batch_idx": int32(0, 1, 2)},
    ),
    "length-below": (
        ValueError,
        "cache_seqlens should not be negative, got -1",
        False,
        {"cache_seqlens": int32(5, -1, 7)},
    ),
    "length-int-below": (
        ValueError,
        "cache_seqlens should not be negative, got -1",
        False,
        {"cache_seqlens": -1},
    ),
    "length-above": (
        ValueError,
        "holds 12 tokens a sequence, got 11 in cache_seqlens and 2",
        False,
        {"cache_seqlens": int32(5, 11, 7)},
    ),
    "length-wraps": (
        ValueError,
        f"holds 12 tokens a sequence, got {2**32 + 3}",
        False,
        {"cache_seqlens": torch.tensor([5, 2**32 + 3, 7])},
    ),
    "lengths-float": (
        TypeError,
        "cache_seqlens should be torch.int32 or torch.int64, got torch.float32",
        False,
        {"cache_seqlens": FLOATS.abs()},
    ),
    "lengths-bool": (
        TypeError,
        "cache_seqlens should be torch.int32 or",
        False,
        {"cache_seqlens": FLOATS > 0},
    ),
    "length-bool": (TypeError, "cache_seqlens should be an int", False, {"cache_seqlens": True}),
    "length-float": (TypeError, "cache_seqlens should be an int", False, {"cache_seqlens": 2.0}),
    "lengths-batch": (
        ValueError,
        "cache_seqlens should have shape .* batch 3",
        False,
        {"cache_seqlens": int32(5)},
    ),
    "lengths-0d": (
        ValueError,
        "cache_seqlens should have shape",
        False,
        {"cache_seqlens": torch.tensor(5)},
    ),
    "rows-below": (
        ValueError,
        "cache_batch_idx should be from 0 to 2",
        False,
        {"cache_batch_idx": int32(0, -1, 2)},
    ),
    "rows-above": (
        ValueError,
        "cache_batch_idx should be from 0 to 2",
        False,
        {"cache_batch_idx": int32(0, 3, 2)},
    ),
    "rows-twice": (
        ValueError,
        "name each row that is written once",
        False,
        {"cache_batch_idx": int32(0, 2, 2)},
    ),
    "rows-float": (
        TypeError,
        "cache_batch_idx should be torch.int32 or",
        False,
        {"cache_batch_idx": FLOATS},
    ),
    "new-batch": (
        ValueError,
        r"k should have shape .*\(3, 2, 2, 8\), got \(1, 2, 2, 8\)",
        False,
        {"k": torch.randn(1, 2, KEY_HEADS, D)},
    ),
    "new-heads": (ValueError, "v should have shape", False, {"v": torch.randn(B, 2, 1, D)}),
    "new-tokens": (
        ValueError,
        "v should have shape",
        False,
        {"v": torch.randn(B, 1, KEY_HEADS, D)},
    ),
    "new-width": (ValueError, "v should have shape", False, {"v": torch.randn(B, 2, KEY_HEADS, 1)}),
    "new-dtype": (
        TypeError,
        "v should be torch.float32 as the cache is",
        False,
        {"v": torch.randn(B, 2, KEY_HEADS, D).double()},
    ),
    "new-alone": (ValueError, "k and v should be given together", False, {"v": None}),
    "cache-dtype": (
        TypeError,
        "v_cache should be of q's dtype",
        False,
        {"v_cache": SHARED.double()},
    ),
    "cache-device": (ValueError, "v_cache should be on cpu", False, {"v_cache": SHARED.to("meta")}),
    "cache-batch": (
        ValueError,
        "k_cache should have q's batch 3, got 2",
        False,
        {"k_cache": SHARED[:2], "v_cache": SHARED[:2].clone()},
    ),
    "cache-expanded": (
        ValueError,
        "v_cache, which is written, should have memory",
        False,
        {"v_cache": SHARED[:1].expand(B, -1, -1, -1)},
    ),
    "cache-once": (
        ValueError,
        "should not be the same memory",
        False,
        {"k_cache": SHARED, "v_cache": SHARED},
    ),
    "new-of-cache": (
        ValueError,
        "v should not be a view of the cache",
        False,
        {"v_cache": SHARED, "v": SHARED[:, :2]},
    ),
    "heads": (ValueError, "divides q's", False, {"q": torch.randn(B, 2, 3, D)}),
    "query-batch": (ValueError, "k should have shape", False, {"q": torch.randn(2, 2, HEADS, D)}),
    "no-batch": (
        ValueError,
        "q should have a batch of at least 1",
        False,
        {n: torch.randn(0, 2, h, D) for n, h in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS))}
        | {"cache_seqlens": int32(), "cache_batch_idx": int32()},
    ),
    "rotary-short": (
        ValueError,
        "should have 9 positions, got 8",
        False,
        {"rotary_cos": ROTARY[:8], "rotary_sin": ROTARY[:8]},
    ),
    "rotary-wide": (
        ValueError,
        "rotary_dim at most q's 8",
        False,
        {"rotary_cos": torch.randn(CAPACITY, 5), "rotary_sin": torch.randn(CAPACITY, 5)},
    ),
    "rotary-shapes": (
        ValueError,
        "the same as rotary_cos",
        False,
        {"rotary_cos": ROTARY, "rotary_sin": ROTARY[:, :2]},
    ),
    "rotary-dtype": (
        TypeError,
        "rotary_sin should be floating",
        False,
        {"rotary_cos": ROTARY, "rotary_sin": ROTARY.long()},
    ),
    "rotary-alone": (
        ValueError,
        "rotary_cos and rotary_sin should be given together",
        False,
        {"rotary_cos": ROTARY},
    ),
    "leftpad": (NotImplementedError, "cache_leftpad", False, {"cache_leftpad": int32(0, 0, 0)}),
    "window": (ValueError, "window_size should be two ints", False, {"window_size": (1, 2.5)}),
    "scale": (
        TypeError,
        "softmax_scale should be a number, got Parameter",
        False,
        {"softmax_scale": torch.nn.Parameter(torch.ones(()))},
    ),
    "softcap": (
        ValueError,
        "softcap should be a number not below 0",
        False,
        {"softcap": -1.0},
    ),
    "slopes": (
        ValueError,
        "alibi_slopes should have shape",
        False,
        {"alibi_slopes": torch.ones(3)},
    ),
    "gradient": (
        RuntimeError,
        "has no gradient",
        False,
        {"q": torch.randn(B, 2, HEADS, D, requires_grad=True)},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_writes_nothing(name: str) -> None:
    error, message, paged, changed = BAD[name]
    arguments = call(paged) | changed
    caches = [x for x in (arguments["k_cache"], arguments["v_cache"]) if not x.is_meta]
    before = [x.clone() for x in caches]
    with pytest.raises(error, match=message):
        flash_attn_with_kvcache(**arguments)
    for x, y in zip(caches, before, strict=True):
        assert torch.equal(x, y)


def test_what_may_be_shared_and_what_is_not_read() -> None:
    """Full pages may be shared, rows be read twice; entries behind the tokens may hold anything."""
    arguments = call(paged=True)
    lengths = [5, 8, 4]
    arguments["cache_seqlens"] = int32(*lengths)
    arguments["block_table"] = int32([0, 1, -1], [0, 2, 3], [0, 4, 99])
    expected = [
        torch.cat(
            [arguments[cache][arguments["block_table"][b, :2].long()].flatten(0, 1)[:n], new[b]]
        )
        for cache, new in (("k_cache", arguments["k"]), ("v_cache", arguments["v"]))
        for b, n in enumerate(lengths)
    ]
    out = flash_attn_with_kvcache(**arguments)
    for b in range(B):
        k, v = expected[b], expected[B + b]
        alone = flash_attn_func(arguments["q"][b : b + 1], k[None], v[None], causal=True)
        torch.testing.assert_close(out[b : b + 1], alone)
    reading = call() | {"k": None, "v": None, "cache_batch_idx": int32(2, 2, 0)}
    out = flash_attn_with_kvcache(**reading)
    rows = reading["cache_batch_idx"].long()
    copied = {n: reading[n][rows] for n in ("k_cache", "v_cache")} | {"cache_batch_idx": None}
    torch.testing.assert_close(out, flash_attn_with_kvcache(**(reading | copied)))


@pytest.mark.parametrize("kind", ["int", "int32", "int64"])
@pytest.mark.parametrize("paged", [False, True])
def test_compiled_without_a_break(paged: bool, kind: str) -> None:
    """Values are not read there; the cache is written all the same, at other lengths too."""
    compiled = torch.compile(flash_attn_with_kvcache, fullgraph=True, backend="aot_eager")
    for length in (3, 4, 6):
        lengths: Any = length
        if kind != "int":
            lengths = torch.tensor([length, 2, 0], dtype=getattr(torch, kind))
        arguments = call(paged) | {"cache_seqlens": lengths}
        again = {n: x.clone() if isinstance(x, Tensor) else x for n, x in arguments.items()}
        torch.testing.assert_close(compiled(**again), flash_attn_with_kvcache(**arguments))
        torch.testing.assert_close(again["k_cache"], arguments["k_cache"])


def test_jvp_is_right() -> None:
    arguments = call() | {"k": None, "v": None}
    arguments = {
        n: x.double() if n in ("q", "k_cache", "v_cache") else x for n, x in arguments.items()
    }
    q = arguments.pop("q")
    tangent = torch.randn_like(q)

    def attend(q: Tensor) -> Tensor:
        return flash_attn_with_kvcache(q, **arguments)

    _, along = torch.func.jvp(attend, (q,), (tangent,))
    step = 1e-6 * tangent
    torch.testing.assert_close(
        along, (attend(q + step) - attend(q - step)) / 2e-6, atol=1e-7, rtol=1e-5
    )
