"""Transformer encoder and decoder: torch's modules on fastseq's attention, without the padding."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.transformer import _detect_is_causal_mask, _get_seq_len

from ..ops.registration import autocasting, has_kernels
from ..ops.subclasses import has_values, overridden
from ..ops.traced import eager_inference
from .attention import MultiheadAttention

_FEW_TOKENS = 256


def _adopt(module: torch.nn.Module) -> None:
    """Turns torch's modules within into ours: the same objects, parameters and initial values."""
    for part in module.modules():
        part.__class__ = COUNTERPARTS.get(type(part), type(part))


class Packing(NamedTuple):
    """Where the tokens of a padded batch (B, S) stand once they lie one after the other."""

    at: Tensor  # (tokens,) of the flattened batch
    bounds: Tensor  # (B+1,) int32, where each sequence starts, and the total
    longest: int

    @classmethod
    def of(cls, padding: Tensor) -> "Packing":
        """From a padding mask (B, S), True where there is no token."""
        present = ~padding
        lengths = present.sum(1, dtype=torch.int32)
        bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        longest = int(lengths.max()) if len(lengths) else 0
        return cls(present.flatten().nonzero().squeeze(1), bounds, longest)

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, E) to (tokens, E)."""
        return x.flatten(0, 1).index_select(0, self.at)

    def unpack(self, rows: Tensor, like: Tensor) -> Tensor:
        """(tokens, E) to the shape of ``like`` (B, S, E), with zeros at padding."""
        zeros = rows.new_zeros(like.shape[0] * like.shape[1], rows.shape[1])
        return zeros.index_copy(0, self.at, rows).view(*like.shape[:2], -1)


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """``torch.nn.TransformerEncoderLayer`` on fused attention, with and without gradients.

    Constructor, parameters, ``state_dict``, initial values, results and errors are torch's. Only
    nested tensors, and inference on the CPU without masks over less than 256 (or d_model) tokens,
    take torch's own inference path.
    """

    self_attn: MultiheadAttention

    @functools.wraps(torch.nn.TransformerEncoderLayer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _adopt(self.self_attn)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """torch's forward: src is (S, B, E), (B, S, E) if ``batch_first``, or (S, E)."""
        masked = src_mask is not None or src_key_padding_mask is not None
        if src.is_nested or (not masked and self._torch_is_quicker(src)):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        return self._around(
            lambda x: self._sa_block(x, src_mask, src_key_padding_mask, is_causal), src
        )

    def forward_packed(self, rows: Tensor, packing: Packing, is_causal: bool) -> Tensor:
        """The layer over the tokens of all sequences, (tokens, E), one after the other."""
        return self._around(
            lambda x: self.dropout1(
                self.self_attn.forward_packed(x, packing.bounds, packing.longest, is_causal)
            ),
            rows,
        )

    def packs(self) -> bool:
        """Whether ``forward_packed`` does what ``forward`` does: nothing in it was replaced."""
        kind, attention = type(self), self.self_attn
        return (
            kind.forward is TransformerEncoderLayer.forward
            and kind._sa_block is torch.nn.TransformerEncoderLayer._sa_block
            and type(attention).forward is MultiheadAttention.forward
            and attention.packs()
            and not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())
            and not any("forward" in vars(m) for m in (self, attention))
        )

    def _around(self, attend: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The layer but for its attention. Post- and pre-norm: arXiv 2002.04745, figure 1."""
        if self.norm_first:
            x = x + attend(self.norm1(x))
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + attend(x))
        return self.norm2(x + self._ff_block(x))

    def _torch_is_quicker(self, src: Tensor) -> bool:
        """Whether torch's inference path, one call into C++, does the same in less time.

        Over few tokens the products around the attention are nearly all of the work.
        """
        return (
            eager_inference(src, parameters=self.parameters())
            and not self.training
            and src.dim() == 3
            and self.self_attn.batch_first
            and src.shape[1] < max(_FEW_TOKENS, src.shape[2])
        )


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """``torch.nn.TransformerDecoderLayer`` on fused attention."""

    @functools.wraps(torch.nn.TransformerDecoderLayer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _adopt(self.self_attn)
        _adopt(self.multihead_attn)


class TransformerEncoder(torch.nn.TransformerEncoder):
    """``torch.nn.TransformerEncoder`` that packs padded batches.

    Where torch turns a padded batch into a nested tensor (inference, ``enable_nested_tensor``, a
    left-aligned bool padding mask), its tokens go through the layers in one row, without the
    padding; the results are torch's, zeros at padding before ``norm`` included.

    Args:
        encoder_layer, num_layers, norm, enable_nested_tensor, mask_check: as in torch.
        skip_padding: do so in every call with a ``src_key_padding_mask``, training included, for
            any positions of the padding and with a causal mask. The mask has to be bool, and the
            output (after ``norm``) is zero at padding. Calls that cannot be packed (other masks,
            unbatched input, layers of other classes or with hooks, ``torch.compile``) compute the
            padding and give the same results.
    """

    skip_padding = False

    def __init__(
        self,
        encoder_layer: torch.nn.TransformerEncoderLayer,
        num_layers: int,
        norm: torch.nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
        *,
        skip_padding: bool = False,
    ) -> None:
        super().__init__(encoder_layer, num_layers, norm, enable_nested_tensor, mask_check)
        if skip_padding:
            self.skip_padding = True

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """torch's forward: src is (S, B, E), (B, S, E) if ``batch_first``, or (S, E).

        Raises:
            TypeError: with ``skip_padding``, for a padding mask that is not bool.
        """
        padding, skip = src_key_padding_mask, self.skip_padding
        if padding is None or src.is_nested:
            return super().forward(src, mask, padding, is_causal)
        if not skip and not self._torch_packs(src, mask, padding):
            return self._through_layers(src, mask, padding, is_causal)
        if skip and padding.dtype != torch.bool:
            raise TypeError(
                f"skip_padding needs src_key_padding_mask to be torch.bool, got {padding.dtype}"
            )
        batch_first = self.layers[0].self_attn.batch_first
        if not self._packs(src, mask, padding, is_causal):
            if not skip and not autocasting(src.device.type):  # which takes no nested tensors
                return super().forward(src, mask, padding, is_causal)
            out = self._through_layers(src, mask, padding, is_causal)
            empty = padding if batch_first or src.dim() == 2 else padding.t()
            return out.masked_fill(empty.unsqueeze(-1), 0) if skip else out
        causal = mask is not None
        x = src if batch_first else src.transpose(0, 1)
        packing = Packing.of(padding)
        rows = packing.pack(x)
        for layer in self.layers:
            rows = layer.forward_packed(rows, packing, causal)
        if skip and self.norm is not None:
            rows = self.norm(rows)
        out = packing.unpack(rows, x)
        if not skip and self.norm is not None:
            out = self.norm(out)
        return out if batch_first else out.transpose(0, 1)

    def _through_layers(
        self, src: Tensor, mask: Tensor | None, padding: Tensor, is_causal: bool | None
    ) -> Tensor:
        """torch's forward where it makes no nested tensor, which takes a mask for a bool one."""
        added = F._canonical_mask(
            padding, "src_key_padding_mask", F._none_or_dtype(mask), "mask", src.dtype
        )
        mask = F._canonical_mask(mask, "mask", None, "", src.dtype, check_other=False)
        length = _get_seq_len(src, self.layers[0].self_attn.batch_first)
        causal = _detect_is_causal_mask(mask, is_causal, length)
        for layer in self.layers:
            src = layer(src, src_mask=mask, is_causal=causal, src_key_padding_mask=added)
        return src if self.norm is None else self.norm(src)

    def _torch_packs(self, src: Tensor, mask: Tensor | None, padding: Tensor) -> bool:
        """Whether torch would make a nested tensor of this input."""
        first = self.layers[0]
        return (
            mask is None
            and padding.dtype == torch.bool
            and src.dim() == 3
            and getattr(self, "use_nested_tensor", False)
            and not first.training
            and not overridden((src, padding, *first.parameters()))
            and not torch.compiler.is_compiling()
            and has_values(padding)
            and torch.backends.mha.get_fastpath_enabled()
            and not torch.is_autocast_enabled()
            and not (
                torch.is_grad_enabled() and any(x.requires_grad for x in (src, *first.parameters()))
            )
            and (
                not getattr(self, "mask_check", True)
                or torch._nested_tensor_from_mask_left_aligned(src, ~padding)
            )
        )

    def _packs(
        self, src: Tensor, mask: Tensor | None, padding: Tensor, is_causal: bool | None
    ) -> bool:
        """Whether our packed layers serve the call; a mask then is causal."""
        if torch.compiler.is_compiling() or not has_values(padding):
            return False
        if src.dim() != 3 or overridden((src, mask, padding)):
            return False
        if not has_kernels(src.device.type):
            return False
        batch_first = self.layers[0].self_attn.batch_first
        return (
            padding.shape == (src.shape[:2] if batch_first else src.shape[1::-1])
            and all(isinstance(x, TransformerEncoderLayer) and x.packs() for x in self.layers)
            and _detect_is_causal_mask(mask, is_causal, padding.shape[1]) == (mask is not None)
        )


class TransformerDecoder(torch.nn.TransformerDecoder):
    """``torch.nn.TransformerDecoder``: a stack of whatever layers it is given."""


class Transformer(torch.nn.Transformer):
    """``torch.nn.Transformer`` of fastseq's encoder and decoder; custom ones stay as they are."""

    @functools.wraps(torch.nn.Transformer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for stack in (self.encoder, self.decoder):
            if not any(stack is given for given in (*args, *kwargs.values())):
                _adopt(stack)


# torch's class to ours. Ours adds only methods and class attributes with defaults, so an instance
# changes over by its __class__.
COUNTERPARTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.MultiheadAttention: MultiheadAttention,
    torch.nn.TransformerEncoderLayer: TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer: TransformerDecoderLayer,
    torch.nn.TransformerEncoder: TransformerEncoder,
    torch.nn.TransformerDecoder: TransformerDecoder,
    torch.nn.Transformer: Transformer,
}
