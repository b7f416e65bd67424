"""The recurrent suite under pytest-benchmark.

pytest benchmarks/bench_rnn.py --benchmark-group-by=group -k "GRU and infer"
"""

import pytest

from fastseq.benchmarks import side_by_side
from fastseq.benchmarks.cases_rnn import Case
from fastseq.benchmarks.rnn import SUITE


@pytest.mark.parametrize(("case", "implementation"), side_by_side.pairs(SUITE))
def test_rnn(case: Case, implementation: str, benchmark) -> None:
    side_by_side.run(SUITE, case, implementation, benchmark)
