"""The attention Triton kernels under Triton's interpreter against the reference in float64.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import check, groups  # noqa: E402

GROUPS = groups(True, "attention")


@pytest.mark.parametrize("group", GROUPS)
def test_parity(group: str) -> None:
    outcomes = [answer for _, answer in check(GROUPS[group], interpreted=True, seconds=240)]
    assert len(outcomes) == len(GROUPS[group])
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
    # Nothing passes for want of results to compare.
    least = 2 if "decode" in group else 3
    assert all(len(outcome["error_ratios"]) >= least for outcome in outcomes)
