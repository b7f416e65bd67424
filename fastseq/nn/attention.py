"""MultiheadAttention: torch's module with the computation on fastseq's attention operator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.attention import attention, attention_and_weights, torch_is_quicker
from ..ops.gemm import linear
from ..ops.registration import autocasting, has_kernels
from ..ops.subclasses import causal_bias, is_distributed, overridden
from . import _extras


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` on fused attention.

    Constructor, parameters, ``state_dict``, initial values, results and errors are torch's. With
    ``need_weights`` the weights are made again from the log-sum-exp; without, none are. Masks may
    require gradients. A query whose keys are all masked gets zeros, where torch gives NaN or zeros
    according to the path it takes. Short calls without masks or gradients are torch's own.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """torch's forward.

        Args:
            query: (L, B, E), (B, L, E) if ``batch_first``, or (L, E); key and value likewise with S
                and kdim, vdim.
            key_padding_mask: (B, S) or (S,), bool (True is left out) or floating (added).
            attn_mask: (L, S) or (B·num_heads, L, S), bool (True is left out) or floating (added).
                Or one of ``torch.nn.attention.bias``, which torch's module cannot read.
            average_attn_weights: weights are (B, L, S) instead of (B, num_heads, L, S).
            is_causal: a promise that ``attn_mask`` is causal.

        Returns:
            The output, shaped as the query, and the weights, or None.
        """
        bias = causal_bias(attn_mask)
        if bias is not None:
            attn_mask = ~bias._materialize(query.device)
        weights = (*self._parameters.values(), *self.out_proj._parameters.values())
        tensors = (query, key, value, attn_mask, key_padding_mask, *weights)
        masked = attn_mask is not None or key_padding_mask is not None
        if (
            overridden(tensors)
            or (not masked and self._is_short(query, key, weights))
            or not self._serves(query, key, value, key_padding_mask, attn_mask, is_causal, weights)
        ):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        batched = query.dim() == 3
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask[None]
        q, k, v = map(self._split_heads, self._project(query, key, value))
        k, v, extra = self._extend(k, v)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._merge(attn_mask, key_padding_mask, q, extra)
        dropout_p = self.dropout if self.training else 0.0
        used = None
        if need_weights:
            out, used = attention_and_weights(
                q, k, v, mask, average=average_attn_weights, dropout_p=dropout_p
            )
        else:
            window = (-1, 0 if causal else -1)
            out, _ = attention(q, k, v, mask, window=window, dropout_p=dropout_p)
        out = out.transpose(1, 2).flatten(2)
        if not batched:
            out, used = out.squeeze(0), None if used is None else used.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return linear(out, self.out_proj.weight, self.out_proj.bias), used

    def forward_packed(
        self, x: Tensor, bounds: Tensor, longest: int, is_causal: bool = False
    ) -> Tensor:
        """Self-attention of sequences that lie one after the other, without weights.

        Args:
            x: (tokens, E).
            bounds: (sequences + 1,) int32, where each starts, and the total.
            longest: tokens of the longest.
            is_causal: a token sees itself and those of its sequence before it.
        """
        q, k, v = map(self._split_heads, self._project(x, x, x))
        out, _ = attention(
            q, k, v, window=(-1, 0 if is_causal else -1),
            dropout_p=self.dropout if self.training else 0.0,
            cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=longest, max_seqlen_k=longest,
        )  # fmt: skip
        out = out.transpose(1, 2).flatten(2).squeeze(0)
        return linear(out, self.out_proj.weight, self.out_proj.bias)

    def packs(self) -> bool:
        """Whether ``forward_packed`` has all that the module does."""
        weights = (*self._parameters.values(), *self.out_proj._parameters.values())
        return (
            self._qkv_same_embed_dim
            and self.bias_k is None
            and not self.add_zero_attn
            and not overridden(weights)
        )

    def _is_short(self, query: Tensor, key: Tensor, weights: tuple[Tensor | None, ...]) -> bool:
        """Whether torch's own module does the same, without masks, in less time."""
        if not query.dim() == key.dim() == 3 or key.is_nested:
            return False
        return torch_is_quicker(query, key, *weights, keys=1 if self.batch_first else 0)

    def _serves(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
        weights: tuple[Tensor | None, ...],
    ) -> bool:
        """Whether torch would take the call and the operator serves it; else torch answers."""
        dims, dtype, device = query.dim(), query.dtype, query.device
        alone = query is key is value
        if (
            dims not in (2, 3)
            or not has_kernels(device.type)
            or dtype not in _extras.SERVED_DTYPES
            or (is_causal and attn_mask is None)
            or any(
                x.dim() != dims or x.layout != torch.strided or x.is_nested
                for x in ((query,) if alone else (query, key, value))
            )
            or is_distributed(query)
        ):
            return False
        tensors = weights if alone else (key, value, *weights)
        mixed = autocasting(device.type)
        for x in tensors:
            if x is not None and (x.device != device or (x.dtype != dtype and not mixed)):
                return False
        q, k, v = query.shape, key.shape, value.shape
        if q[-1] != self.embed_dim or k[-1] != self.kdim or v[-1] != self.vdim or k[:-1] != v[:-1]:
            return False
        padding, target = tuple(k[:-1]), q[0]
        if dims == 3:
            batch, target, source = (*q[:2], k[1]) if self.batch_first else (q[1], q[0], k[0])
            padding = (batch, source)
            if k[0 if self.batch_first else 1] != batch:
                return False
        full = (padding[0] * self.num_heads if dims == 3 else self.num_heads, target, padding[-1])
        return (
            attn_mask is None
            or (_extras.is_mask(attn_mask, query) and attn_mask.shape in (full, full[1:]))
        ) and (
            key_padding_mask is None
            or (_extras.is_mask(key_padding_mask, query) and key_padding_mask.shape == padding)
        )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The input projections, in one product where inputs are the same tensor."""
        bias = self.in_proj_bias
        if not self._qkv_same_embed_dim:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            return tuple(map(linear, (query, key, value), weights, biases))
        weight, size = self.in_proj_weight, self.embed_dim
        if query is key is value:
            return linear(query, weight, bias).chunk(3, -1)
        parts = [size, 2 * size] if key is value else [size] * 3
        weights = weight.split(parts)
        biases = (None,) * 3 if bias is None else bias.split(parts)
        products = [linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]
        return (products[0], *products[1].chunk(2, -1)) if key is value else tuple(products)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(…, E) to (B, heads, tokens, head_dim): a view, for the operator takes any strides."""
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        if x.dim() == 3:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with those that every query may see, and how many these are."""
        if self.bias_k is None and not self.add_zero_attn:
            return k, v, 0
        shape = (k.shape[0], self.num_heads, 1, self.head_dim)
        added: list[tuple[Tensor, Tensor]] = []
        if self.bias_k is not None and self.bias_v is not None:
            own = [
                b.view(1, self.num_heads, 1, -1).expand(shape) for b in (self.bias_k, self.bias_v)
            ]
            added.append((own[0].to(k.dtype), own[1].to(v.dtype)))
        if self.add_zero_attn:
            added.append((k.new_zeros(shape), v.new_zeros(shape)))
        k = torch.cat([k, *(x for x, _ in added)], 2)
        v = torch.cat([v, *(x for _, x in added)], 2)
        return k, v, len(added)

    def _merge(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        q: Tensor,
        extra: int,
    ) -> Tensor | None:
        """Both masks as the operator takes one: four dimensions, True takes part, or added."""
        masks = []
        if attn_mask is not None:
            shape = (1, 1) if attn_mask.dim() == 2 else (q.shape[0], self.num_heads)
            masks.append(attn_mask.view(*shape, *attn_mask.shape[-2:]))
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None])
        if not masks:
            return None
        if extra:
            masks = [F.pad(m, (0, extra)) for m in masks]
        if all(m.dtype == torch.bool for m in masks):
            return ~masks[0] if len(masks) == 1 else ~(masks[0] | masks[1])
        added = [
            m.to(q.dtype)
            if m.is_floating_point()
            else torch.zeros_like(m, dtype=q.dtype).masked_fill_(m, -torch.inf)
            for m in masks
        ]
        return added[0] if len(added) == 1 else added[0] + added[1]
