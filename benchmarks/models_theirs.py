"""Models of ``transformers`` with random weights, and ours with the same."""

import tempfile
from typing import Any

import torch
from torch import Tensor

from fastseq.models import BERT, GPT, Transformer

from .cases_models import SIZES, Case
from .models_torch import TorchModel
from .suite import Skipped

EOS, PAD = 0, 1


def pair(case: Case) -> tuple[Any, Any]:
    """Theirs without dropout, and ours. Where it is to decode, no sentence ends by itself."""
    theirs = {"Transformer": marian, "GPT": gpt2, "BERT": bert}[case.model](case.size)
    if case.kind == "decode":
        _endless(theirs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        no_dropout = {"dropout": 0.0, "attention_dropout": 0.0}
        if case.model == "Transformer":
            return theirs, Transformer.from_marian(folder, **no_dropout)
        if case.model == "GPT":
            return theirs, GPT.from_pretrained(folder, **no_dropout)
        return theirs, MaskedWords(BERT.from_pretrained(folder, **no_dropout))


@torch.no_grad()
def _endless(theirs: Any) -> None:
    """The end is never the best word: by a bias, or by a row of zeros where there is none."""
    if hasattr(theirs, "final_logits_bias"):
        theirs.final_logits_bias[0, [EOS, PAD]] = -1e4
    else:
        words(theirs)[EOS] = 0


class MaskedWords(torch.nn.Module):
    """BERT's vectors and a tied projection to words."""

    def __init__(self, bert: BERT) -> None:
        super().__init__()
        self.bert, self.config = bert, bert.config
        self.output = torch.nn.Linear(bert.config.hidden_size, bert.config.vocab_size, bias=False)
        self.output.weight = bert.embedding.words.weight


def words(model: Any) -> Tensor:
    """The weight of the (target's) word embedding."""
    if isinstance(model, TorchModel):
        return model.words.weight
    if hasattr(model, "get_input_embeddings"):
        return model.get_input_embeddings().weight
    if isinstance(model, Transformer):
        return model.target_embedding.words.weight
    return (model.bert if isinstance(model, MaskedWords) else model).embedding.words.weight


def library() -> Any:
    try:
        import transformers
    except ImportError:
        raise Skipped("transformers is not installed (pip install transformers)") from None
    return transformers


def marian(size: str) -> Any:
    width, heads, ffn, layers, vocabulary = SIZES[size]
    config = library().MarianConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn, eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=PAD,
        forced_eos_token_id=None, scale_embedding=True, dropout=0.0,
    )  # fmt: skip
    return library().MarianMTModel(config).eval()


def gpt2(size: str) -> Any:
    width, heads, _, layers, vocabulary = SIZES[size]
    config = library().GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_head=heads, n_layer=layers, n_positions=512,
        bos_token_id=EOS, eos_token_id=EOS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return library().GPT2LMHeadModel(config).eval()


def bert(size: str) -> Any:
    width, heads, ffn, layers, vocabulary = SIZES[size]
    config = library().BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=ffn, pad_token_id=PAD,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return library().BertModel(config, add_pooling_layer=False).eval()
