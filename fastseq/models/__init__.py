"""Whole models on fastseq's layers: trained on rows without padding, decoded with caches."""

from .base import CheckpointError, Model, load
from .bert import (
    BERT,
    BERTConfig,
    BERTForPretraining,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
)
from .gpt import GPT, GPTConfig
from .rows import pack, unpack
from .seq2seq import Seq2Seq, Seq2SeqConfig
from .transformer import Transformer, TransformerConfig

__all__ = [
    "BERT",
    "GPT",
    "BERTConfig",
    "BERTForPretraining",
    "BERTForQuestionAnswering",
    "BERTForSequenceClassification",
    "BERTForTokenClassification",
    "CheckpointError",
    "GPTConfig",
    "Model",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Transformer",
    "TransformerConfig",
    "load",
    "pack",
    "unpack",
]
