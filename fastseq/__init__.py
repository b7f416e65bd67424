"""fastseq: drop-in recurrent layers, attention and transformers for PyTorch, on fused kernels."""

from pathlib import Path as _Path

# In a source tree kernels/ and benchmarks/ lie beside this package; installed, inside it.
if (_Path(__file__).parent.parent / "setup.py").is_file():
    __path__.append(str(_Path(__file__).parent.parent))

from . import _extension, nn, ops
from .config import show_config
from .functional import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    scaled_dot_product_attention,
)
from .functional_additive import additive_attention
from .integrations import opacus as _opacus
from .nn import (
    GRU,
    LSTM,
    RNN,
    AdditiveAttention,
    ConcatAttention,
    DotAttention,
    GeneralAttention,
    GRUCell,
    LSTMCell,
    MultiheadAttention,
    RNNCell,
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from .patch import PatchReport, patch, patch_torch, unpatch

_extension.warn_if_missing()
_opacus.register()

__version__ = "0.1.0"

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
    "PatchReport",
    "RNNCell",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "additive_attention",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "nn",
    "ops",
    "patch",
    "patch_torch",
    "scaled_dot_product_attention",
    "show_config",
    "unpatch",
]
