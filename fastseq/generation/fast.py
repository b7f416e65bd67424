"""The fast decoder: a Transformer's or GPT's weights packed once, a step in one C++ call."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models import Transformer
from ..ops.decoder import decoder_step
from .packed import WEIGHTS, packed_weights, unsupported

MOST_ROWS = 512  # tokens of one call: more bring no speed, but take memory
MOST_BEST = 64  # of a call that finds the best words itself


class FastState:
    """What has been decoded: keys and values, which never move, and each row's way through them.

    Slot r of position j holds the token that was row r's then. ``select`` moves indices only.
    """

    attention = None

    def __init__(
        self, shape: tuple[int, int], rows: int, max_length: int, memory: list[Tensor], spans
    ) -> None:
        self.layers, self.width = shape
        self.length, self.max_length = 0, max_length
        self.memory, self.spans = memory, spans
        self.cache = torch.empty(self.layers, 2, 0, rows, self.width)
        self.ancestors = torch.empty(rows, 0, dtype=torch.int32)

    def rewind(self) -> None:
        """Forgets all tokens, but not the source."""
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Keeps, reorders or repeats rows: row i becomes what rows[i] was."""
        self.ancestors = self.ancestors.index_select(0, rows)
        if self.spans is not None:
            self.spans = self.spans.index_select(0, rows)

    def reserve(self, tokens: int) -> None:
        """Makes room for so many more tokens of every row."""
        *_, capacity, slots, _ = self.cache.shape
        rows, needed = len(self.ancestors), self.length + tokens
        if needed > self.max_length:
            raise ValueError(
                f"the state holds {self.max_length} tokens a sequence, got {self.length} and "
                f"{tokens} new ones"
            )
        if needed <= capacity and rows <= slots:
            return
        if needed > capacity:
            capacity = min(self.max_length, max(2 * capacity, needed, 64))
        cache = torch.empty(self.layers, 2, capacity, max(slots, rows), self.width)
        cache[:, :, : self.length, :slots] = self.cache[:, :, : self.length]
        ancestors = torch.zeros(rows, capacity, dtype=torch.int32)
        ancestors[:, : self.length] = self.ancestors[:, : self.length]
        self.cache, self.ancestors = cache, ancestors


class FastDecoder:
    """Decodes with a packed copy of a model's weights; has ``begin`` and ``step`` as the model.

    Args:
        model: a ``Transformer`` or ``GPT`` of float32 on the CPU. Later changes of its decoder do
            not show; its encoder is used as it is.
        weights: what the decoder's matrices are kept in: torch.float32, torch.bfloat16, or
            torch.int8 with a scale for each output. With int8 the inputs of products are rounded to
            int8 too, row by row. All else is float32.

    Raises:
        TypeError, ValueError: the model or ``weights`` is none of these.
    """

    def __init__(self, model: Any, weights: torch.dtype = torch.float32) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {WEIGHTS}, got {weights!r}")
        if why := unsupported(model):
            raise TypeError(why)
        self.model, self.weights, self.config = model, weights, model.config
        self._packed = packed_weights(model, weights)

    def parameters(self) -> Iterator[Tensor]:
        return self.model.parameters()

    def modules(self) -> Iterator[torch.nn.Module]:
        return self.model.modules()

    @torch.no_grad()
    def begin(
        self,
        source: Tensor | None = None,
        source_lengths: Tensor | None = None,
        *,
        batch_size: int | None = None,
        max_length: int,
        cache: str = "contiguous",
    ) -> FastState:
        """As the model's own ``begin``; ``cache`` can only be "contiguous"."""
        if cache != "contiguous":
            raise ValueError(f"cache must be 'contiguous' in a FastDecoder, got {cache!r}")
        if max_length > self.config.max_length:
            raise ValueError(
                f"max_length must be at most the model's {self.config.max_length}, got {max_length}"
            )
        if not isinstance(self.model, Transformer):
            if batch_size is None or source is not None:
                raise TypeError("a GPT begins with batch_size, and without a source")
            return FastState(self._shape(), batch_size, max_length, [], None)
        if source is None or source_lengths is None:
            raise TypeError("a Transformer begins with source and source_lengths")
        encoded, rows = self.model.encode(source, source_lengths)
        layers: Any = self.model.decoder.layers
        memory = [layer.cross_attention.kv(encoded).float() for layer in layers]
        spans = torch.stack([rows.bounds[:-1], rows.bounds.diff()], 1)
        return FastState(self._shape(), len(source), max_length, memory, spans)

    def _shape(self) -> tuple[int, int]:
        return len(self.model.decoder.layers), self.config.hidden_size

    def step(self, tokens: Tensor, state: FastState) -> Tensor:
        """Logits (B, vocab_size) after the last of the tokens (B, t), which join the state.

        That of the start is -inf, unless it is the end of sentence as well.
        """
        return self._step(tokens, state, 0)[0]

    def step_best(self, tokens: Tensor, state: FastState, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids (B, k) of the best words after the tokens, best first."""
        if k <= MOST_BEST:
            return self._step(tokens, state, k)
        scores, ids = torch.log_softmax(self.step(tokens, state), -1).topk(k)
        return scores, ids

    def _step(self, tokens: Tensor, state: FastState, best: int) -> tuple[Tensor, Tensor]:
        rows, steps = tokens.shape
        packed, config = self._packed, self.config
        if rows != len(state.ancestors) or not steps:
            raise ValueError(
                f"tokens must be ({len(state.ancestors)}, t) with t >= 1, got {tuple(tokens.shape)}"
            )
        state.reserve(steps)
        few = rows * steps <= MOST_ROWS
        for part in (tokens,) if few else tokens.split(max(1, MOST_ROWS // rows), 1):
            results = decoder_step(
                part, state.cache, state.ancestors, state.length,
                packed.words, packed.word_scale, packed.places, packed.angles,
                packed.embedding_norm, packed.matrices, packed.biases, packed.scales, packed.norms,
                state.memory, state.spans, config.num_heads, config.ffn_size, config.activation,
                config.norm_first, config.norm_eps, best,
            )  # fmt: skip
            state.length += part.shape[1]
        return results
