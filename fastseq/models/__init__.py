"""Whole models on fastseq's layers: trained on rows without padding, decoded with caches."""

from .base import CheckpointError, Model, load
from .gpt import GPT, GPTConfig
from .rows import pack, unpack
from .transformer import Transformer, TransformerConfig

__all__ = [
    "GPT",
    "CheckpointError",
    "GPTConfig",
    "Model",
    "Transformer",
    "TransformerConfig",
    "load",
    "pack",
    "unpack",
]
