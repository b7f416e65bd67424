"""Models as directories: what is written, what is read back, and what is wrong with other files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastseq.models import (
    BERT,
    GPT,
    BERTConfig,
    BERTForPretraining,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    CheckpointError,
    GPTConfig,
    Model,
    Seq2Seq,
    Seq2SeqConfig,
    Transformer,
    TransformerConfig,
    load,
)
from tests.models.small import ATTENTION, MODELS, gpt, sources, transformer

BERTS = (
    BERT,
    BERTForPretraining,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTForQuestionAnswering,
)
BUILDERS = {
    **MODELS,
    **{
        kind.__name__: lambda kind=kind: kind(BERTConfig(**ATTENTION, num_layers=2, num_labels=3))
        for kind in BERTS
    },
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    gpt().save_pretrained(tmp_path)
    return tmp_path


def rewrite_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def rewrite_weights(directory: Path, **changes) -> None:
    path = directory / "model.safetensors"
    weights = {**load_file(path), **changes}
    save_file({k: v for k, v in weights.items() if v is not None}, path)


def assert_same(ours: Model, theirs: Model) -> None:
    assert type(ours) is type(theirs) and ours.config == theirs.config
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", BUILDERS)
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = BUILDERS[name]().to(dtype)
    model.save_pretrained(tmp_path / "new" / "directory")
    state = torch.get_rng_state()
    again = load(tmp_path / "new" / "directory")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(again, model)
    assert not again.training
    assert_same(type(model).from_pretrained(tmp_path / "new" / "directory"), model)
    assert all(p.requires_grad and p.is_leaf for p in again.parameters())


def test_tied_parameters_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    model = transformer()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters())
    assert [name for name, w in weights.items() if len(w) == 37] == [
        "source_embedding.words.weight"
    ]
    again = load(tmp_path)
    words = again.source_embedding.words.weight
    assert again.output.weight is words and again.target_embedding.words.weight is words


def test_parameters_begin_with_a_cache_line(saved: Path) -> None:
    """As new ones do: MKL's sums depend on it, and so would a run that goes on."""
    assert all(p.data_ptr() % 64 == 0 for p in load(saved).parameters())


def test_dtype_and_changes(saved: Path) -> None:
    model = GPT.from_pretrained(saved, dtype=torch.bfloat16, device="cpu", dropout=0.3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.dropout == 0.3 and model.embedding.dropout.p == 0.3
    assert load(saved, dtype=torch.float64).output.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="GPTConfig has no field width; it has vocab_size"):
        GPT.from_pretrained(saved, width=3)
    with pytest.raises(CheckpointError, match=r"up\.weight should have shape \(21, 12\)"):
        GPT.from_pretrained(saved, ffn_size=21)


def test_saving_again_replaces(saved: Path) -> None:
    model = gpt()
    model.save_pretrained(saved)
    assert_same(load(saved), model)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_disk_that_takes_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    before = load(saved)

    def fail(*_, **__) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match=r"model\.safetensors: not written: .*No space left"):
        gpt().save_pretrained(saved)
    assert_same(load(saved), before)
    assert len(list(saved.iterdir())) == 2


def test_missing_files(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: there is no such file"):
        load(saved)
    (saved / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"; pytorch_model\.bin is a pickle, which is not"):
        load(saved)
    (saved / "config.json").unlink()
    for read in (load, GPT.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"config\.json: there is no such file, so"):
            read(saved)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(saved / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or no safetensors"):
        load(saved)


def test_foreign_weights(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or no safetensors"):
        load(saved)


def test_damaged_configuration(saved: Path) -> None:
    path = saved / "config.json"
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON: .*line \d+"):
        load(saved)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        load(saved)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: not a JSON object"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "unknown model_type 'llama'; known: bert, fastseq-bert, "),
        ({"model_type": ...}, "unknown model_type None"),
        ({"wings": 2}, "GPTConfig has no field wings; it has vocab_size, "),
        ({"vocab_size": ...}, "missing 1 required keyword-only argument: 'vocab_size'"),
        ({"hidden_size": "12"}, "hidden_size should be of type int, got '12'"),
        ({"hidden_size": True}, "hidden_size should be of type int, got True"),
        ({"num_layers": 0}, "num_layers should be greater than zero, got 0"),
        ({"dropout": 1.0}, r"dropout should be in range \[0, 1\), got 1.0"),
        ({"positions": "odd"}, "positions should be one of 'sinusoidal', 'learned', 'rotary', go"),
        ({"num_heads": 5}, "num_heads should divide hidden_size 12, got 5"),
    ],
)
def test_configuration_that_does_not_fit(saved: Path, changes: dict, message: str) -> None:
    rewrite_config(saved, **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        load(saved)


def test_weights_that_do_not_fit(saved: Path) -> None:
    name = "decoder.layers.1.feed_forward.up.bias"
    rewrite_weights(saved, **{name: torch.zeros(19)})
    with pytest.raises(CheckpointError, match=rf"{name} should have shape \(20,\), got \(19,\)"):
        load(saved)
    rewrite_weights(saved, **{name: None})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors lacks weights: {name}"):
        load(saved)
    rewrite_weights(saved, **{name: torch.zeros(20), "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors has unexpected weights: extra"):
        load(saved)


def test_a_model_of_another_class(saved: Path) -> None:
    for kind in (Transformer, Seq2Seq, *BERTS):
        with pytest.raises(CheckpointError, match=rf"'fastseq-gpt', not .*as {kind.__name__} need"):
            kind.from_pretrained(saved)
    with pytest.raises(TypeError, match="config should be a GPTConfig, got TransformerConfig"):
        GPT(TransformerConfig(vocab_size=5))


@pytest.mark.parametrize("kind", BERTS)
@pytest.mark.parametrize("saved_kind", BERTS)
def test_berts_start_from_one_another(tmp_path: Path, saved_kind: type, kind: type) -> None:
    model = saved_kind(BERTConfig(**ATTENTION, num_layers=2, num_labels=3))
    model.save_pretrained(tmp_path)
    ours = kind.from_pretrained(tmp_path).train()
    body, theirs = (dict(x._encoder.named_parameters()) for x in (ours, model))
    assert body.keys() - theirs.keys() <= {"pooler.weight", "pooler.bias"}
    assert all(torch.equal(body[name], theirs[name]) for name in body.keys() & theirs.keys())
    ours.save_pretrained(tmp_path)
    assert_same(load(tmp_path), ours)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: GPTConfig(vocab_size=0), ValueError, "vocab_size should be greater than zero"),
        (lambda: GPTConfig(vocab_size=9, pad_id=-1), ValueError, "pad_id should not be negative"),
        (
            lambda: GPTConfig(vocab_size=9, hidden_size=15, num_heads=3, positions="sinusoidal"),
            ValueError,
            "hidden_size should be even with sinusoidal positions, got 15",
        ),
        (
            lambda: GPTConfig(vocab_size=9, hidden_size=15, num_heads=3, positions="rotary"),
            ValueError,
            "hidden_size / num_heads should be even with rotary positions, got 5",
        ),
        (
            lambda: TransformerConfig(vocab_size=9, source_vocab_size=8),
            ValueError,
            "share_embeddings needs source_vocab_size to be vocab_size 9, got 8",
        ),
        (
            lambda: Seq2SeqConfig(vocab_size=9, attention="concat"),
            ValueError,
            "attention should be one of 'additive', 'dot', 'general', got 'concat'",
        ),
        (
            lambda: Seq2SeqConfig(vocab_size=9, attention=None, input_feeding=True),
            ValueError,
            "input_feeding needs attention, got attention=None",
        ),
        (
            lambda: Seq2SeqConfig(vocab_size=9, hidden_size=7),
            ValueError,
            "hidden_size should be even with bidirectional, got 7",
        ),
        (
            lambda: Seq2SeqConfig(vocab_size=9, tie_embeddings=True, embedding_size=7),
            ValueError,
            "tie_embeddings needs embedding_size to be hidden_size 256, got 7",
        ),
        (lambda: BERTConfig(vocab_size=9, pooler=1), TypeError, "pooler should be of type bool"),
    ],
)
def test_bad_configurations(build, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_loaded_models_compute(tmp_path: Path) -> None:
    model, source, lengths = transformer().eval(), sources(), torch.tensor([7, 2, 5])
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        wanted = model(source, lengths, source, lengths)
    again = load(tmp_path)
    assert torch.equal(again(source, lengths, source, lengths), wanted)
