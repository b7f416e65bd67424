"""The Triton kernels under Triton's interpreter against the references.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported. The
persistent recurrent kernels run with a thread for each program, so their waiting is exercised too.
"""

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import FAMILIES, check, groups  # noqa: E402

GROUPS = {
    (family, group): names for family in FAMILIES for group, names in groups(True, family).items()
}
# Results that are compared: nothing passes for want of them. Without keys there are three.
LEAST = {"rnn": 5, "attention": 3, "additive": 3, "dropout": 1}


@pytest.mark.parametrize(("family", "group"), GROUPS)
def test_parity(family: str, group: str) -> None:
    names = GROUPS[family, group]
    outcomes = [answer for _, answer in check(names, interpreted=True, seconds=240)]
    assert len(outcomes) == len(names)
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
    least = 2 if "decode" in group else LEAST[family]
    assert all(len(outcome["error_ratios"]) >= least for outcome in outcomes)
