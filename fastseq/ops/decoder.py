"""``fastseq::decoder_step``: one step of a Transformer's decoder in one call, for inference.

It runs in C++ on the CPU and in plain PyTorch (``fastseq.reference.decoder``, which also says how
weights are packed) where there is no extension. In shapes, R is rows, t new tokens of each, d the
width, H heads, V words.

    tokens          (R, t) int64
    cache           (layers, 2, capacity, slots, d) float32, keys and values; new ones join it
    ancestors       (R, capacity) int32: token j of row r is in slot ancestors[r, j]. A search that
                    reorders rows reorders these, and moves no keys. Row r writes to slot r.
    length          tokens of each row before the new ones
    words           (V, d), multiplied by word_scale
    places, angles  what is added to words (positions, d); or sines and cosines of rotary positions
                    (2, positions, d/H/2)
    embedding_norm  and norms: weight and bias (2, d), in the order of their use
    matrices        with biases and, for int8, scales: in a layer qkv, out, q and out of
                    cross-attention, up, down; then the words'
    memory, spans   keys and values of the source (source tokens, 2·d) of each layer, and a row's
                    first token and how many it has (R, 2) int32; None in a decoder without source
    best            how many words to return

It returns log-probabilities and ids (R, best), best first, after the last of the tokens; or, where
best is 0, all logits (R, V) and nothing.
"""

import torch
from torch import Tensor

from .. import _extension
from ..reference import decoder as reference

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define(
    "decoder_step(Tensor tokens, Tensor(a!) cache, Tensor(b!) ancestors, int length, "
    "Tensor words, float word_scale, Tensor? places, Tensor? angles, Tensor? embedding_norm, "
    "Tensor[] matrices, Tensor[] biases, Tensor[] scales, Tensor[] norms, Tensor[] memory, "
    "Tensor? spans, int heads, int ffn, str activation, bool norm_first, float eps, int best) "
    "-> (Tensor scores, Tensor ids)"
)


def _fake(
    tokens: Tensor, cache: Tensor, ancestors: Tensor, length: int, words: Tensor, *others
) -> tuple[Tensor, Tensor]:
    best = others[-1]
    rows = tokens.shape[0]
    return words.new_empty(rows, best or words.shape[0]), tokens.new_empty(rows, best)


_library.impl("decoder_step", reference.decoder_step, "CompositeExplicitAutograd")
torch.library.register_fake("fastseq::decoder_step", _fake, lib=_library)
_extension.load()

decoder_step = torch.ops.fastseq.decoder_step.default


def pack(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A linear layer's weight (outputs, inputs) for ``decoder_step``.

    Args:
        dtype: torch.float32, torch.bfloat16 or torch.int8, with a scale for each output.

    Returns:
        The packed weight, and for int8 its scales, else None.
    """
    return reference.pack(weight, dtype, columns())


def pad(bias: Tensor | None, weight: Tensor) -> Tensor:
    """A bias (outputs,), or none, in whole panels."""
    outputs = weight.shape[0]
    padded = torch.zeros(-(-outputs // columns()) * columns())
    if bias is not None:
        padded[:outputs] = bias
    return padded


def columns() -> int:
    """Outputs of a panel: as many as the instruction set in use works on."""
    if not _extension.load():
        return 16
    from .. import _C

    return _C.decoder_columns()
