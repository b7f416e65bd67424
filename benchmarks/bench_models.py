"""The models suite under pytest-benchmark.

pytest benchmarks/bench_models.py --benchmark-group-by=group -k "decoding and B1"
"""

import pytest

from fastseq.benchmarks import side_by_side
from fastseq.benchmarks.cases_models import Case
from fastseq.benchmarks.models import SUITE


@pytest.mark.parametrize(("case", "implementation"), side_by_side.pairs(SUITE))
def test_models(case: Case, implementation: str, benchmark) -> None:
    side_by_side.run(SUITE, case, implementation, benchmark)
