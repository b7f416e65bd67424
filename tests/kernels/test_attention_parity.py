"""The attention Triton kernels under Triton's interpreter against the reference in float64.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import Group, cases, groups, in_process  # noqa: E402


@pytest.mark.parametrize("group", groups(True, ("attention",)), ids=" ".join)
def test_parity(group: Group) -> None:
    outcomes = in_process(group, interpreted=True, seconds=240)
    assert len(outcomes) == len(cases(group, True))
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
    # Nothing passes for want of results to compare.
    least = 2 if "decode" in group else 3
    assert all(len(outcome["error_ratios"]) >= least for outcome in outcomes)
