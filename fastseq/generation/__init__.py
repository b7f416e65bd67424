"""Search over what a model would say: greedy, sampling, beam search."""

from .decoding import Hypothesis
from .search import generate

__all__ = ["Hypothesis", "generate"]
