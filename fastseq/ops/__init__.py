"""Differentiable operators: schema, shapes, autograd, and the choice of kernel for each device."""

from .rnn import rnn_layer

__all__ = ["rnn_layer"]
