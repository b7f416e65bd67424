"""Recurrent dropout's Triton kernel under Triton's interpreter: the reference's bits.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import Group, cases, groups, in_process  # noqa: E402


@pytest.mark.parametrize("group", groups(True, ("dropout",)), ids=" ".join)
def test_same_bits(group: Group) -> None:
    outcomes = in_process(group, interpreted=True, seconds=240)
    assert len(outcomes) == len(cases(group, True))
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
