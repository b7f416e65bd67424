"""Recurrent dropout's Triton kernel under Triton's interpreter: the reference's bits.

Each group runs in a process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels.check import check, groups  # noqa: E402

GROUPS = groups(True, "dropout")


@pytest.mark.parametrize("group", GROUPS)
def test_same_bits(group: str) -> None:
    outcomes = [answer for _, answer in check(GROUPS[group], interpreted=True, seconds=240)]
    assert len(outcomes) == len(GROUPS[group])
    failed = [outcome for outcome in outcomes if not outcome["passed"]]
    assert not failed, failed
