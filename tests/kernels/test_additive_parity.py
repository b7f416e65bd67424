"""The additive attention Triton kernels under Triton's interpreter against the reference.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

import pytest
import torch

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import check, groups  # noqa: E402
from fastseq.reference import additive_attention as reference  # noqa: E402

GROUPS = groups(True, "additive")


@pytest.mark.parametrize("group", GROUPS)
def test_parity(group: str) -> None:
    outcomes = [answer for _, answer in check(GROUPS[group], interpreted=True, seconds=240)]
    assert len(outcomes) == len(GROUPS[group])
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
    # Nothing passes for want of results to compare: without keys there are three.
    assert all(len(outcome["error_ratios"]) >= 3 for outcome in outcomes)


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
