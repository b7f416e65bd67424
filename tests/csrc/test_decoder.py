"""The C++ decoder step against plain PyTorch."""

from pathlib import Path

import pytest
import torch

from fastseq import _extension
from fastseq.ops.decoder import decoder_step
from tests.csrc import instruction_sets
from tests.csrc.decoder_cases import FEATURES, SIZES, WEIGHTS, Case
from tests.csrc.instruction_sets import needs_compiler, needs_sources

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))


@pytest.fixture(autouse=True)
def threads():
    """One thread, unless the test asks for more: on a busy machine they wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_plain_torch(size: tuple, feature: str, weights: torch.dtype) -> None:
    for rows in (1, 3, 25):
        Case(size, weights, rows, **FEATURES[feature]).check()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_bits_do_not_depend_on_threads(threads, weights: torch.dtype) -> None:
    case = Case(SIZES[2], weights, rows=5)
    plan, results = case.steps(), []
    for count in (1, 2, 3):
        threads(count)
        results.append([x for step in case.run(decoder_step, 4, plan) for x in step])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_nan_stays_in_its_row() -> None:
    case = Case(SIZES[1], torch.float32, rows=3)
    case.words[5] = torch.nan
    tokens = torch.tensor([[4], [5], [6]])
    for best in (0, 3):
        ((scores, ids),) = case.run(decoder_step, best, [(torch.arange(3), tokens)])
        assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
        assert ((ids >= 0) & (ids < len(case.words))).all()


CASES = "decoder_cases", "cases()[::2]"


@pytest.mark.parametrize("name", instruction_sets.usable())
def test_every_instruction_set(name: str) -> None:
    instruction_sets.check(*CASES, name)


@pytest.mark.slow
@needs_sources
@needs_compiler
def test_wide_kernels(tmp_path: Path) -> None:
    instruction_sets.check_emulated(*CASES, tmp_path, "decoder")
