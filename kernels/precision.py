"""How exact the kernels' float32 products are, by torch's settings: ``input_precision`` of tl.dot.

``fp32_precision`` knows what was asked for through either of torch's two interfaces; the older,
``allow_tf32``, raises once the newer was used.
"""

import torch
from torch import Tensor

from .device import limits_of


def of_attention(x: Tensor) -> str:
    """As torch's matrix products: TF32 only where asked for.

    Elsewhere three products in TF32, which lose next to nothing and run on tensor cores.
    """
    if x.dtype != torch.float32:
        return "ieee"
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3" if limits_of(x.device).warp == 32 else "ieee"


def of_rnn(x: Tensor) -> str:
    """As the recurrent layers of cuDNN, which torch lets use TF32 unless told otherwise.

    Those of AMD's library never do. Products around the scan are torch's own matrix products.
    """
    if x.dtype != torch.float32 or limits_of(x.device).warp != 32:
        return "ieee"
    # torch.backends.cudnn.rnn.fp32_precision, which a module of that name hides in torch 2.10.
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32" else "ieee"
