"""Drop-in modules on fastseq's operators."""

from .rnn import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN"]
