"""The specification against the formulas, one number at a time."""

import math

import torch

from fastseq.reference.additive_attention import (
    additive_attention_backward,
    additive_attention_forward,
)


def test_against_the_formulas() -> None:
    q, k, value, v = (
        torch.randn(s, dtype=torch.float64) for s in ((2, 3, 4), (2, 5, 4), (2, 5, 6), (4,))
    )
    mask = torch.rand(2, 3, 5) > 0.3
    mask[1, 2] = False
    out, weights = additive_attention_forward(q, k, value, v, mask)
    for b in range(2):
        for i in range(3):
            e = [
                math.exp(sum(v[d] * math.tanh(q[b, i, d] + k[b, j, d]) for d in range(4)))
                * bool(mask[b, i, j])
                for j in range(5)
            ]
            for j in range(5):
                assert math.isclose(weights[b, i, j], e[j] / (sum(e) or 1), abs_tol=1e-14)
            for c in range(6):
                context = sum(weights[b, i, j] * value[b, j, c] for j in range(5))
                assert math.isclose(out[b, i, c], context, abs_tol=1e-14)


def test_backward_is_the_derivative() -> None:
    inputs = [
        torch.randn(s, dtype=torch.float64).requires_grad_()
        for s in ((2, 3, 4), (2, 5, 4), (2, 5, 6), (4,))
    ]
    mask = torch.rand(2, 1, 5) > 0.3
    results = additive_attention_forward(*inputs, mask)
    upstream = [torch.randn_like(y) for y in results]
    torch.testing.assert_close(
        additive_attention_backward(*upstream, *inputs, results[1], mask),
        torch.autograd.grad(results, inputs, upstream),
    )
