"""The zoo tells right numbers from wrong ones."""

from typing import Any

import pytest

pytest.importorskip("transformers")

from fastseq.integrations import huggingface
from tests.zoo import compare, configs


def test_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastseq.integrations import _huggingface_models

    _huggingface_models._warn_of_own_attention.cache_clear()
    assert compare.examine("falcon").outcome == compare.REFUSED
    assert compare.examine("bloom").outcome == compare.OWN
    llama = compare.examine("llama")
    assert llama.outcome == compare.SAME
    assert llama.error is not None and 0 < llama.error < 1e-4
    assert llama.note == "forward, padded, gradient, dynamic cache, static cache"
    right = huggingface.attention_forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out, weights = right(*args, **kwargs)
        return out * 1.01, weights

    monkeypatch.setattr(huggingface, "attention_forward", wrong)
    assert compare.examine("llama").outcome == compare.DIFFERENT
    monkeypatch.undo()
    huggingface.register()


def test_types() -> None:
    assert {"llama", "t5", "qwen2_vl_vision"} <= set(configs.model_types())
    config = next(iter(configs.tiny_configs("gemma3_text")))
    assert set(config.layer_types) == {"full_attention", "sliding_attention"}
    assert len(config.layer_types) == config.num_hidden_layers <= 6
