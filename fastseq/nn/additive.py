"""Attention of the encoder-decoders: additive (Bahdanau), and Luong's dot, general and concat."""

import torch
from torch import Tensor
from torch.nn import Module, Parameter, init

from ..functional_additive import additive_attention, check_inputs, taking_part, with_batch
from ..ops.attention import attention, attention_and_weights
from ..ops.gemm import linear


class AdditiveAttention(Module):
    """Attention by the score v·tanh(W_q·query + W_k·key + bias) (Bahdanau et al., arXiv 1409.0473).

    Parameters: ``w_query`` (hidden_dim, query_dim) and ``w_key`` (hidden_dim, key_dim), from
    Xavier's uniform distribution; ``v`` (hidden_dim,), uniform within ±1/√hidden_dim; ``bias``
    (hidden_dim,), zero. (The paper starts from v = 0, which holds back the gradients of the rest.)

    Args:
        query_dim, key_dim: widths of a query (a decoder's state) and a key (an encoder's).
        hidden_dim: number of tanh units.
        bias: whether there is one.
    """

    bias: Tensor | None

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_dims(query_dim=query_dim, key_dim=key_dim, hidden_dim=hidden_dim)
        self.query_dim, self.key_dim, self.hidden_dim = query_dim, key_dim, hidden_dim

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(shape, device=device, dtype=dtype))

        self._add_projections(parameter)
        self.v = parameter(hidden_dim)
        self.register_parameter("bias", parameter(hidden_dim) if bias else None)
        self.reset_parameters()

    def _add_projections(self, parameter) -> None:
        self.w_query = parameter(self.hidden_dim, self.query_dim)
        self.w_key = parameter(self.hidden_dim, self.key_dim)

    def _projections(self) -> tuple[Tensor, Tensor]:
        return self.w_query, self.w_key

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new initial values."""
        for weight in self._projections():
            init.xavier_uniform_(weight)
        bound = self.hidden_dim**-0.5
        init.uniform_(self.v, -bound, bound)
        if self.bias is not None:
            init.zeros_(self.bias)

    def project_keys(self, key: Tensor) -> Tensor:
        """W_k·key (…, Tk, hidden_dim): once a sentence, for a decoder that goes step by step."""
        return linear(key, self._projections()[1], None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        *,
        attn_mask: Tensor | None = None,
        projected_keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The context of each query, and the weights.

        Args:
            query: (B, Tq, query_dim); key: (B, Tk, key_dim); value: (B, Tk, Dv), the key itself if
                None. All may lack B, or have 1 in its place.
            key_padding_mask: bool (B, Tk) or (Tk,), True is left out.
            attn_mask: bool (Tq, Tk) or (B, Tq, Tk), True is left out.
            projected_keys: what ``project_keys(key)`` returned.

        Returns:
            The context (B, Tq, Dv), and, if ``need_weights``, the weights (B, Tq, Tk), else None.

        Raises:
            ValueError, TypeError: as ``fastseq.additive_attention``.
        """
        w_query, w_key = self._projections()
        context, weights = additive_attention(
            query,
            key if projected_keys is None else projected_keys,
            key if value is None else value,
            w_query,
            w_key if projected_keys is None else None,
            self.v,
            self.bias,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            return_weights=True,
        )
        return context, weights if need_weights else None

    def extra_repr(self) -> str:
        return f"{self.query_dim}, {self.key_dim}, {self.hidden_dim}, bias={self.bias is not None}"


class ConcatAttention(AdditiveAttention):
    """Attention by the score v·tanh(W·[query; key]) (Luong et al., arXiv 1508.04025).

    It is additive attention whose two projections are the halves of one parameter, ``weight``
    (hidden_dim, query_dim + key_dim), each drawn as there; ``v`` (hidden_dim,).
    """

    weight: Tensor

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_dim, key_dim, hidden_dim, False, device, dtype)

    def _add_projections(self, parameter) -> None:
        self.weight = parameter(self.hidden_dim, self.query_dim + self.key_dim)

    def _projections(self) -> tuple[Tensor, Tensor]:
        w_query, w_key = self.weight.split([self.query_dim, self.key_dim], 1)
        return w_query, w_key


class DotAttention(Module):
    """Attention by the score query·key, unscaled (Luong et al., arXiv 1508.04025)."""

    def _project(self, query: Tensor, key: Tensor) -> Tensor:
        if query.shape[-1] != key.shape[-1]:
            raise ValueError(
                f"key should be {query.shape[-1]} wide as query is, got {key.shape[-1]}"
            )
        return query

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        *,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The context of each query, and the weights.

        Args:
            query: (B, Tq, query_dim); key: (B, Tk, key_dim); value: (B, Tk, Dv), the key itself if
                None. All may lack B, or have 1 in its place.
            key_padding_mask: bool (B, Tk) or (Tk,), True is left out.
            attn_mask: bool (Tq, Tk) or (B, Tq, Tk), True is left out.

        Returns:
            The context (B, Tq, Dv), and, if ``need_weights``, the weights (B, Tq, Tk), which only
            then take memory, else None.

        Raises:
            ValueError: a shape does not fit. TypeError: dtypes differ, or a mask is not bool.
        """
        value = key if value is None else value
        batch = check_inputs(query, key, value)
        mask = taking_part(key_padding_mask, attn_mask, query, key, batch)
        inputs = with_batch(batch, self._project(query, key), key, value)
        q, k, v = (x[:, None] for x in inputs)  # one head
        mask = None if mask is None else mask[:, None]
        weights = None
        if need_weights:
            context, weights = attention_and_weights(q, k, v, mask, scale=1.0)
            weights = weights[:, 0] if batch else weights[0, 0]
        else:
            context, _ = attention(q, k, v, mask, scale=1.0)
        return context[:, 0] if batch else context[0, 0], weights


class GeneralAttention(DotAttention):
    """Attention by the score query·Wᵀ·key (Luong et al., arXiv 1508.04025).

    Parameter: ``weight`` (key_dim, query_dim), from Xavier's uniform distribution. It goes to the
    query, so that a decoder's keys stay as they are.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_dims(query_dim=query_dim, key_dim=key_dim)
        self.query_dim, self.key_dim = query_dim, key_dim
        self.weight = Parameter(torch.empty(key_dim, query_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new initial values."""
        init.xavier_uniform_(self.weight)

    def _project(self, query: Tensor, key: Tensor) -> Tensor:
        for name, x, size in (("query", query, self.query_dim), ("key", key, self.key_dim)):
            if x.shape[-1] != size:
                raise ValueError(f"{name} should be {size} wide, got {x.shape[-1]}")
        return linear(query, self.weight, None)

    def extra_repr(self) -> str:
        return f"{self.query_dim}, {self.key_dim}"


def _check_dims(**dims: int) -> None:
    for name, size in dims.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} should be greater than zero, got {size}")
