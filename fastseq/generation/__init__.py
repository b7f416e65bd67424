"""Search over what a model would say: greedy, sampling, beam search."""

from .decoding import Hypothesis
from .fast import FastDecoder
from .search import generate

__all__ = ["FastDecoder", "Hypothesis", "generate"]
