"""Drop-in modules on fastseq's operators."""

from .additive import AdditiveAttention, ConcatAttention, DotAttention, GeneralAttention
from .attention import MultiheadAttention
from .cells import GRUCell, LSTMCell, RNNCell
from .rnn import GRU, LSTM, RNN
from .transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdditiveAttention",
    "ConcatAttention",
    "DotAttention",
    "GRUCell",
    "GeneralAttention",
    "LSTMCell",
    "MultiheadAttention",
    "RNNCell",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
