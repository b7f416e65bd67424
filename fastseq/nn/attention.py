"""MultiheadAttention: torch's module with the computation on fastseq's attention operator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.attention import attention, attention_weights
from ..ops.gemm import linear
from . import _extras


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` on fused attention.

    Constructor, parameters, ``state_dict``, initial values, results and errors are torch's. The
    weights that ``need_weights`` asks for are computed from the log-sum-exp, so that asking does
    not leave the fused kernel; masks may require gradients. A query whose keys are all masked gets
    zeros, where torch gives NaN or zeros according to the path it takes.
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
            average_attn_weights: weights are (B, L, S) instead of (B, num_heads, L, S).
            is_causal: a promise that ``attn_mask`` is causal.

        Returns:
            The output, shaped as the query, and the weights, or None.
        """
        if not self._serves(query, key, value, key_padding_mask, attn_mask, is_causal):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        batched = query.dim() == 3
        batch_dim = 0 if self.batch_first and batched else 1
        heads = self._project(query, key, value)
        if not batched:
            heads = tuple(x.unsqueeze(1) for x in heads)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        # (…, E) to (B, heads, tokens, head_dim): views, for the operator takes any strides.
        q, k, v = (
            x.unflatten(-1, (self.num_heads, self.head_dim)).movedim(batch_dim, 0).transpose(1, 2)
            for x in heads
        )
        k, v, extra = self._extend(k, v)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._merge(attn_mask, key_padding_mask, q, extra)
        dropout_p = self.dropout if self.training else 0.0
        seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
        out, lse = attention(
            q, k, v, mask, window=(-1, 0 if causal else -1), dropout_p=dropout_p, seed=seed
        )
        out = out.transpose(1, 2).flatten(2).movedim(0, batch_dim)
        out = linear(out, self.out_proj.weight, self.out_proj.bias)
        weights = None
        if need_weights:
            weights = attention_weights(
                q, k, lse, mask, average=average_attn_weights, dropout_p=dropout_p, seed=seed
            )
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return out, weights

    def _serves(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> bool:
        """Whether torch would take the call and the operator serves it; else torch answers."""
        tensors = (query, key, value)
        if (
            query.dim() not in (2, 3)
            or any(x.is_nested or x.layout != torch.strided for x in tensors)
            or any(x.dim() != query.dim() for x in tensors)
            or query.dtype not in _extras.SERVED_DTYPES
            or (is_causal and attn_mask is None)
        ):
            return False
        weights = [p for p in self.parameters() if p is not None]
        mixed = torch.is_autocast_enabled(query.device.type)
        if any(
            x.device != query.device or (x.dtype != query.dtype and not mixed)
            for x in (*tensors, *weights)
        ):
            return False
        batched = query.dim() == 3
        batch_dim = 0 if self.batch_first and batched else 1
        length_dim = 1 - batch_dim if batched else 0
        batch = query.shape[batch_dim] if batched else 1
        target, source = query.shape[length_dim], key.shape[length_dim]
        full = (batch * self.num_heads, target, source)
        padding = (batch, source) if batched else (source,)
        return (
            [x.shape[-1] for x in tensors] == [self.embed_dim, self.kdim, self.vdim]
            and key.shape[:-1] == value.shape[:-1]
            and (not batched or key.shape[batch_dim] == batch)
            and (attn_mask is None or attn_mask.shape in (full, full[1:]))
            and (key_padding_mask is None or key_padding_mask.shape == padding)
            and all(
                m is None or m.dtype == torch.bool or m.is_floating_point()
                for m in (attn_mask, key_padding_mask)
            )
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

    def _extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with those that every query may see, and how many these are."""
        shape = (k.shape[0], self.num_heads, 1, self.head_dim)
        added: list[tuple[Tensor, Tensor]] = []
        if self.bias_k is not None and self.bias_v is not None:
            own = [
                b.view(1, self.num_heads, 1, -1).expand(shape) for b in (self.bias_k, self.bias_v)
            ]
            added.append((own[0].to(k.dtype), own[1].to(v.dtype)))
        if self.add_zero_attn:
            added.append((k.new_zeros(shape), v.new_zeros(shape)))
        if added:
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
