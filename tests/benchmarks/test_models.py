"""The models suite on tiny cases: every kind runs, and a wrong implementation gets no speed."""

import sys
from collections.abc import Iterator

import pytest
import torch

from fastseq.benchmarks import cases_models, models_decode
from fastseq.benchmarks.cases_models import Case, Model
from fastseq.benchmarks.harness import Budget
from fastseq.benchmarks.models import SUITE
from fastseq.benchmarks.suite import select
from fastseq.generation import search
from fastseq.models import Transformer

CPU = torch.device("cpu")
SHORT = Budget(seconds=0.0, least=1, most=2)

TINY = [
    *(
        Case("tiny", "decode", "Transformer", baseline, 2, beam, "tiny", steps=5)
        for baseline in ("transformers", "CTranslate2")
        for beam in (1, 2)
    ),
    Case("tiny", "decode", "Transformer", "CTranslate2", 2, 1, "tiny", weights=torch.int8, steps=5),
    Case("tiny", "decode", "GPT", "transformers", 3, 2, "tiny", steps=5),
    *(
        Case("tiny", "train", model, baseline, 3, size="tiny", dtype=dtype)
        for model in ("Transformer", "GPT", "BERT")
        for baseline in ("torch", "transformers")
        for dtype in (torch.float32, torch.bfloat16)
    ),
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(cases_models.SIZES, "tiny", (32, 2, 128, 2, 90))
    for library in ("transformers", "ctranslate2"):
        pytest.importorskip(library)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.kind} {case.name}")
def test_case_is_measured(case: Case) -> None:
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "ok", entry
    assert set(entry["milliseconds"]) == {"fastseq", case.baseline}
    assert entry["served_by"] == "fastseq" and entry["speedup"] > 0 and entry["tokens"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["Transformer", "GPT"])
def test_model_decodes_as_on_a_card(
    model: Model, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own steps, in its own type: everything goes where the device is."""
    monkeypatch.setattr(models_decode, "has_fast_decoder", lambda device: False)
    monkeypatch.setattr(search, "unsupported", lambda model: "on a card")
    case = Case("tiny", "decode", model, "transformers", 2, 1, "tiny", dtype, dtype, steps=5)
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "ok", entry


def test_missing_library_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    entry = SUITE.measure(TINY[0], CPU, SHORT)
    assert entry["status"] == "skipped" and "transformers is not installed" in entry["reason"]


def test_wrong_implementation_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Transformer.forward

    def wrong(self: Transformer, *inputs: torch.Tensor) -> torch.Tensor:
        return right(self, *inputs) * 1.01

    monkeypatch.setattr(Transformer, "forward", wrong)
    case = next(c for c in TINY if c.kind == "train" and c.model == "Transformer")
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "failed parity" and "speedup" not in entry


def test_suite_is_sound() -> None:
    for device in (CPU, torch.device("cuda")):
        cases = SUITE.cases(device)
        names = [(c.group, c.name) for c in cases]
        assert len(set(names)) == len(names)
    telling = [case.telling for case in cases]
    assert telling[:8] == [True] * 8 and not any(telling[8:])
    cases = SUITE.cases(CPU)
    assert 2 <= len(select(cases, True, "")) < len(cases) / 3
