"""What ``generate`` refuses, and the cases at its edges."""

import pytest
import torch

from fastseq.generation import generate
from tests.generation.tiny import Tiny

SOURCE = torch.tensor([[4, 5, 6], [5, 5, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an int of at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an int"),
        ({"beam_size": 0}, "beam_size must be"),
        ({"num_return": 0}, "num_return must be"),
        ({"num_return": 2}, "num_return must be at most beam_size=1, got 2"),
        ({"beam_size": 3, "num_return": 4}, "num_return must be at most beam_size=3, got 4"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be"),
        ({"length_penalty": -0.5}, "length_penalty must be at least 0"),
        ({"sample": True, "beam_size": 2}, "sample=True needs beam_size=1, got 2"),
        ({"sample": True, "temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"sample": True, "top_k": -1}, "top_k must be"),
        ({"sample": True, "top_p": 0.0}, "top_p must be in .0, 1., got 0.0"),
        ({"sample": True, "top_p": 1.5}, "top_p must be"),
        ({"cache": "pages"}, "cache must be 'contiguous' or 'paged', got 'pages'"),
        ({"source": SOURCE.int()}, "source must be int64 .batch, tokens., got torch.int32"),
        ({"source": SOURCE[0]}, "source must be int64"),
        ({"source_lengths": torch.tensor([3])}, r"source_lengths must be int64 \(2,\)"),
        ({"source_lengths": torch.tensor([3, 0])}, "source_lengths must be between 1 and 3"),
        ({"source_lengths": torch.tensor([4, 1])}, "source_lengths must be between 1 and 3"),
        ({"source": None, "source_lengths": torch.tensor([3])}, "without a source"),
        ({"source": None, "need_attention": True}, "need_attention=True needs a source"),
        ({"prefix": [[4]]}, "prefix must have one entry for each of 2 sources, got 1"),
        ({"prefix": [[4], [9]]}, r"prefix\[1\] must hold ids below 9, got 9"),
        ({"prefix": torch.tensor([4, 5])}, "prefix must be int64 .batch, tokens."),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    model = Tiny(9)
    given = {"source": SOURCE, "max_new_tokens": 3, **options}
    with pytest.raises(ValueError, match=message):
        generate(model, given.pop("source"), **given)
    assert not any(state.rows for state in model.states)  # before any step


def test_source_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"between 1 and 3, got \[3, 0\]"):
        generate(Tiny(9), torch.tensor([[4, 5, 6], [0, 0, 0]]), max_new_tokens=3)


def test_lengths_come_from_the_padding() -> None:
    model = Tiny(9)
    expected = generate(model, SOURCE, torch.tensor([3, 2]), max_new_tokens=5)
    assert generate(model, SOURCE, max_new_tokens=5) == expected


def test_no_sentences() -> None:
    assert generate(Tiny(9), torch.zeros(0, 3, dtype=torch.long), max_new_tokens=3) == []


def test_training_mode_is_given_back() -> None:
    model = Tiny(9)
    seen = []
    step = model.step
    model.step = lambda *a: (seen.append((model.training, torch.is_grad_enabled())), step(*a))[1]
    for training in (True, False):
        model.train(training)
        generate(model, SOURCE, max_new_tokens=2)
        assert model.training == training
    assert set(seen) == {(False, False)}
