"""The recurrent Triton kernels under Triton's interpreter against the reference in float64.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported. The
persistent kernels run with a thread for each program, so their waiting is exercised too.
"""

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import check, groups  # noqa: E402

GROUPS = groups(True, "rnn")


@pytest.mark.parametrize("group", GROUPS)
def test_parity(group: str) -> None:
    outcomes = [answer for _, answer in check(GROUPS[group], interpreted=True, seconds=240)]
    assert len(outcomes) == len(GROUPS[group])
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
    # Nothing passes for want of results to compare.
    assert all(len(outcome["error_ratios"]) >= 5 for outcome in outcomes)
