"""fastseq: drop-in recurrent layers for PyTorch, fast on CPU and GPU."""

from . import ops

__all__ = ["ops"]
