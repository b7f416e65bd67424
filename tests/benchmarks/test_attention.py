"""The attention suite on tiny cases: every kind runs, and a wrong implementation gets no speed."""

import pytest
import torch

import fastseq
from fastseq.benchmarks import attention_blocks
from fastseq.benchmarks.attention import SUITE
from fastseq.benchmarks.attention_blocks import Scores
from fastseq.benchmarks.attention_work import build
from fastseq.benchmarks.cases_attention import Case, cpu_suite, cuda_suite
from fastseq.benchmarks.harness import Budget, parity
from fastseq.benchmarks.suite import select
from fastseq.reference import attention as reference

CPU = torch.device("cpu")
SHORT = Budget(seconds=0.0, least=1, most=2)

TINY = [
    Case("tiny", "attention", 2, 4, 9, 8),
    Case("tiny", "attention", 2, 4, 9, 8, True, causal=True),
    Case("tiny", "attention", 2, 4, 9, 8, True, causal=True, kv_heads=2),
    Case("tiny", "attention", 2, 2, 9, 8, dtype=torch.bfloat16),
    *(
        Case("tiny", "attention", 2, 2, 9, 8, True, mask=mask)
        for mask in ("padding", "boolean", "bias", "bias with gradient")
    ),
    Case("tiny", "attention", 2, 2, 9, 8, True, dropout=0.3),
    Case("tiny", "attention", 2, 2, 9, 8, True, causal=True, window=3),
    Case("tiny", "attention", 2, 2, 9, 8, True, causal=True, alibi=True),
    Case("tiny", "attention", 2, 2, 9, 8, True, causal=True, softcap=5.0),
    Case("tiny", "varlen", 3, 2, 0, 8, True),
    Case("tiny", "decode", 3, 4, 1, 8, keys=20, kv_heads=2),
    Case("tiny", "multihead", 2, 2, 5, 8, True, need_weights=True),
    Case("tiny", "multihead", 2, 2, 5, 8),
    Case("tiny", "encoder", 3, 2, 6, 8),
    Case("tiny", "encoder", 3, 2, 6, 8, True, padded=0.4),
    Case("tiny", "encoder", 3, 2, 6, 8, padded=0.4),
    Case("tiny", "additive", 3, 1, 5, 8, True, keys=7),
]


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.kind} {case.name}")
def test_case_is_measured(case: Case) -> None:
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "ok", entry
    assert set(entry["milliseconds"]) == {"fastseq", case.baseline}
    assert entry["speedup"] > 0 and entry["floor_percent"] > 0 and entry["read_percent"] > 0


@pytest.mark.parametrize("case", TINY[:2], ids=lambda case: case.name)
def test_wrong_implementation_gets_no_speed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastseq.scaled_dot_product_attention

    def wrong(q, *args, **kwargs):
        return right(q, *args, **kwargs) + 1e-3 * q

    monkeypatch.setattr(fastseq, "scaled_dot_product_attention", wrong)
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "failed parity" and "speedup" not in entry


PEERS = [
    Case("tiny", "attention", 2, 4, 9, 8, causal=True, kv_heads=2),
    Case("tiny", "attention", 2, 2, 9, 8),
    Case("tiny", "attention", 2, 2, 9, 8, mask="padding"),
    Case("tiny", "attention", 2, 2, 9, 8, causal=True, window=3),
    Case("tiny", "attention", 2, 2, 9, 8, causal=True, alibi=True),
    Case("tiny", "attention", 2, 2, 9, 8, causal=True, softcap=5.0),
    Case("tiny", "decode", 3, 4, 1, 8, keys=20, kv_heads=2),
]


@pytest.mark.parametrize("case", PEERS, ids=lambda case: f"{case.kind} {case.name}")
def test_peers_compute_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    work = build(case, CPU)
    assert set(work.peers) == set(case.peers)
    _, theirs, exact = work.results()
    for name in {"SDPA flash", "SDPA math", "FlexAttention"} & set(case.peers):
        assert parity({"output": work.peers[name]()}, theirs, exact).passed, name


def test_flex_attention_prepares_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f.__name__) or f)
    work = build(PEERS[0], CPU)
    assert not compiled
    for _ in range(3):
        work.peers["FlexAttention"]()
    assert compiled.count("flex_attention") == 1


@pytest.mark.parametrize("block", [1, 40, 1000, 1 << 25])
@pytest.mark.parametrize(
    ("causal", "mask"),
    [(False, None), (True, None), (True, "seen"), (False, "added"), (True, "row added")],
)
def test_blocks_are_the_whole(
    block: int, causal: bool, mask: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_blocks, "BLOCK", block)
    batch, heads, kv_heads, length = 3, 4, 2, 13
    shapes = [(batch, n, length, d) for n, d in ((heads, 8), (kv_heads, 8), (kv_heads, 5))]
    given = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    after = torch.ones(length, length, dtype=torch.bool).triu(1)
    if mask == "seen":
        given.append((torch.rand(batch, 1, length, length) < 0.7) | ~after.triu())
    elif mask is not None:
        shape = (1, heads, length, length) if mask == "added" else (batch, 1, 1, length)
        given.append(torch.randn(shape, dtype=torch.float64))

    def whole(q, k, v, mask=None):
        s = q @ k.repeat_interleave(heads // kv_heads, 1).mT * q.shape[-1] ** -0.5
        if mask is not None:
            s = s + mask if mask.is_floating_point() else s.masked_fill(~mask, -torch.inf)
        s = s.masked_fill(after, -torch.inf) if causal else s
        return s.softmax(-1) @ v.repeat_interleave(heads // kv_heads, 1)

    def blocks(*given):
        return attention_blocks.attention(*given, scores=Scores(causal=causal))

    def results(function):
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in given]
        out = function(*leaves)
        learned = [x for x in leaves if x.requires_grad]
        return [out, *torch.autograd.grad(out, learned, torch.ones_like(out).cumsum(-2))]

    for found, expected in zip(results(blocks), results(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 200, 1 << 25])
def test_blocks_drop_the_same_weights(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "BLOCK", block)
    q, k, v = (torch.randn(3, heads, 13, 8, dtype=torch.float64) for heads in (4, 2, 2))
    options = reference.Options(
        8**-0.5, -1, 0, softcap=3.0, dropout_p=0.3, max_seqlen_q=13, max_seqlen_k=13, seed=77
    )
    expected, *_ = reference.attend(q, k, v, None, None, None, None, options)
    found = attention_blocks.attention(q, k, v, scores=Scores(True, 3.0, 0.3, 77))
    torch.testing.assert_close(found, expected)


def test_suites_are_sound() -> None:
    for cases in (list(cpu_suite()), list(cuda_suite())):
        names = [(c.group, c.name) for c in cases]
        assert len(set(names)) == len(names)
    telling = [case.telling for case in cuda_suite()]
    assert telling[:20] == [True] * 20 and not any(telling[20:])
    cases = SUITE.cases(CPU)
    assert 5 <= len(select(cases, True, "")) < len(cases) / 3
