"""Learning rates: shapes of the schedules."""

import itertools
import math

import pytest

from fastseq.training.schedules import learning_rate_factor


@pytest.mark.parametrize("schedule", ["inverse-root", "cosine", "linear", "constant"])
def test_warm_up_is_linear_and_meets_the_rest(schedule):
    factors = [learning_rate_factor(schedule, step, 40, 200) for step in range(1, 201)]
    assert factors[:40] == pytest.approx([step / 40 for step in range(1, 41)])
    assert max(factors) == factors[39] == 1
    rest = factors[39:]
    assert rest == sorted(rest, reverse=True)
    assert max(a - b for a, b in itertools.pairwise(rest)) < 0.02


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("inverse-root", math.sqrt(40 / 120), math.sqrt(40 / 200)),
        ("cosine", 0.5, 0.0),
        ("linear", 0.5, 0.0),
        ("constant", 1.0, 1.0),
    ],
)
def test_middle_and_end(schedule, middle, end):
    assert learning_rate_factor(schedule, 120, 40, 200) == pytest.approx(middle)
    assert learning_rate_factor(schedule, 200, 40, 200) == pytest.approx(end, abs=1e-12)
    assert learning_rate_factor(schedule, 1, 0, 200) == pytest.approx(1.0, abs=0.01)


def test_unknown_ones_are_told():
    with pytest.raises(ValueError, match="schedule should be one of inverse-root, cosine"):
        learning_rate_factor("step", 1, 1, 1)
