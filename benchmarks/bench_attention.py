"""The attention suite under pytest-benchmark, with torch's backends and other libraries beside it.

pytest benchmarks/bench_attention.py --benchmark-group-by=group -k "causal and infer"
"""

import pytest

from fastseq.benchmarks import side_by_side
from fastseq.benchmarks.attention import SUITE
from fastseq.benchmarks.cases_attention import Case


@pytest.mark.parametrize(("case", "implementation"), side_by_side.pairs(SUITE))
def test_attention(case: Case, implementation: str, benchmark) -> None:
    side_by_side.run(SUITE, case, implementation, benchmark)
