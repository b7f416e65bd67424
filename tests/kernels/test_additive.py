"""What of additive attention the Triton kernels leave to plain PyTorch."""

import pytest
import torch

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.reference import additive_attention as reference  # noqa: E402


def test_float64_goes_to_plain_torch() -> None:
    sizes = ((2, 3, 5), (2, 4, 5), (2, 4, 6), (5,))
    q, k, value, v = (torch.randn(*size, dtype=torch.float64) for size in sizes)
    # Without a device, a launch would raise.
    out, weights = kernels.additive_attention_forward(q, k, value, v, None)
    expected = reference.additive_attention_forward(q, k, value, v, None)
    assert torch.equal(out, expected[0]) and torch.equal(weights, expected[1])
    given = (out, None, q, k, value, v, weights, None)
    grads = kernels.additive_attention_backward(*given)
    expected = reference.additive_attention_backward(*given)
    assert all(torch.equal(x, y) for x, y in zip(grads, expected))
