"""RNN, LSTM and GRU: torch's modules with the computation on fastseq's operators.

Constructor, attributes, parameters, state_dict and repr are inherited. Calls that torch would
reject, or that the operators do not serve (complex numbers, say), go to torch's own forward, which
raises torch's exception or computes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..ops.packing import packing
from ..ops.registration import has_kernels
from ..ops.rnn import rnn_layer
from ..ops.traced import is_traced
from . import _dynamo, _extras

_OPTIONS = ("layer_norm", "zoneout", "recurrent_dropout", "recompute")
States = tuple[Tensor, ...]  # (h,) or, for LSTM, (h, c), each (num_layers·D, B, width)


class _Recurrent(torch.nn.RNNBase):
    """What RNN, LSTM and GRU share; mixed in before torch's class."""

    # On the class, so that a torch module turned into ours by its __class__ has them too.
    layer_norm: bool = False
    zoneout: float | Sequence[float] = 0.0
    recurrent_dropout: float = 0.0
    recompute: bool = False

    def __init__(
        self,
        *args,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        recompute: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        _extras.zoneout_pair(zoneout, self.mode)
        self.layer_norm = _extras.flag("layer_norm", layer_norm)
        self.zoneout = zoneout
        self.recurrent_dropout = _extras.probability("recurrent_dropout", recurrent_dropout)
        self.recompute = _extras.flag("recompute", recompute)
        if layer_norm:
            _extras.add_norms(self, self._norm_names(), self._flat_weights[0], self.hidden_size)

    def _norm_names(self, layer: int | None = None) -> list[str]:
        """Layer-norm parameters of one layer or of all, one direction after the other."""
        if not self.layer_norm:
            return []
        layers = range(self.num_layers) if layer is None else [layer]
        directions = ("", "_reverse") if self.bidirectional else ("",)
        suffixes = [f"_l{n}{direction}" for n in layers for direction in directions]
        return [name for suffix in suffixes for name in _extras.norm_names(self.mode, suffix)]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        _extras.reset_norms(self, self._norm_names())

    def extra_repr(self) -> str:
        return super().extra_repr() + _extras.options_repr(self, _OPTIONS)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ):
        """torch's forward; with ``lengths`` padding is left out of the computation.

        Args:
            input: (T, B, I), (B, T, I) if ``batch_first``, (T, I), or a PackedSequence.
            hx: (num_layers·D, B, P), without B for unbatched input; for LSTM a pair with
                (num_layers·D, B, H); None for zeros.
            lengths: (B,) length of each sequence, in any order, from 1 to T. States are then those
                after a sequence's last step, and the output is zero past it.

        Returns:
            output, shaped as the input with D·P features, and the final states, shaped as ``hx``.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths goes with padded input, not with a PackedSequence")
            return self._forward_packed(input, hx)
        weights = self._current_weights()
        states = None if hx is None else self._split(hx)
        if (
            not isinstance(input, Tensor)
            or input.dim() not in (2, 3)
            or (hx is not None and not states)
        ):
            return self._by_torch(input, hx, lengths)
        batched, batch_dim = input.dim() == 3, 0 if self.batch_first else 1
        if any(state.dim() != input.dim() for state in states or ()):
            return self._by_torch(input, hx, lengths)
        padded = input if batched else input.unsqueeze(batch_dim)
        batch, steps = padded.shape[batch_dim], padded.shape[1 - batch_dim]
        if states is None:
            states = self._zeros(padded, batch)
        elif not batched:
            states = tuple(state.unsqueeze(1) for state in states)
        if steps == 0 or not self._serves(padded, states, weights, batch):
            return self._by_torch(input, hx, lengths)

        packed = None
        if lengths is not None:
            packed = packing(lengths, batch, steps, self.batch_first, input.device)
        if packed is not None:
            rows = padded.flatten(0, 1).index_select(0, packed.rows)
            output, states = self._layers(
                rows, packed.batch_sizes, _permute(states, packed.order), weights, inner=True
            )
            output = output.new_zeros(batch * steps, output.shape[1]).index_copy(
                0, packed.rows, output
            )
            output = output.unflatten(0, padded.shape[:2])
            states = _permute(states, packed.restore)
        else:
            rows = (padded.transpose(0, 1) if self.batch_first else padded).flatten(0, 1)
            output, states = self._layers(rows, None, states, weights, dense=(steps, batch))
            if self.batch_first:
                output = output.transpose_(0, 1)
        if not batched:
            output = output.squeeze(batch_dim)
            states = tuple(state.squeeze(1) for state in states)
        return output, self._join(states)

    def _forward_packed(self, input: PackedSequence, hx):
        data, batch_sizes, order, restore = input
        weights = self._current_weights()
        batch = int(batch_sizes[0]) if order is None else order.shape[0]
        states = self._zeros(data, batch) if hx is None else self._split(hx)
        if not self._serves(data, states, weights, batch, batched_dims=2):
            return self._by_torch(input, hx)
        if hx is not None:
            states = _permute(states, order)
        output, states = self._layers(data, batch_sizes, states, weights)
        packed = PackedSequence(output, batch_sizes, order, restore)
        return packed, self._join(_permute(states, restore))

    def _split(self, hx) -> States:
        """``hx`` as a tuple of tensors; empty if it is something else."""
        states = tuple(hx) if self.mode == "LSTM" and isinstance(hx, (tuple, list)) else (hx,)
        fitting = len(states) == (2 if self.mode == "LSTM" else 1)
        return states if fitting and all(isinstance(s, Tensor) for s in states) else ()

    def _join(self, states: States) -> Tensor | tuple[Tensor, Tensor]:
        return (states[0], states[1]) if self.mode == "LSTM" else states[0]

    def _zeros(self, input: Tensor, batch: int) -> States:
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size]
        if self.mode == "LSTM":
            sizes.append(self.hidden_size)
        return tuple(input.new_zeros(count, batch, size) for size in sizes)

    def _current_weights(self) -> list[Any]:
        """Weights in torch's flat order, whoever replaced them since construction.

        Parameters are looked up where they live; where one is computed (parametrizations) or set as
        a plain attribute (weight_norm, data-parallel replicas), torch's own search finds it.
        """
        parameters = self._parameters
        try:
            return [parameters[name] for name in self._flat_weights_names]
        except KeyError:
            pass
        try:
            return [getattr(self, name) for name in self._flat_weights_names]
        except AttributeError:
            self._update_flat_weights()
            return self._flat_weights

    def _serves(
        self,
        input: Tensor,
        states: States,
        weights: list[Any],
        batch: int,
        batched_dims: int = 3,
    ) -> bool:
        """Whether shapes, types and devices are what the operator takes."""
        dtype, device = input.dtype, input.device
        count = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        # Autocast converts all but float64.
        mixed = dtype != torch.float64 and _extras.autocasting(device.type)
        wanted = _extras.SERVED_DTYPES[:3] if mixed else (dtype,)
        if (
            not states
            or dtype not in _extras.SERVED_DTYPES
            or input.layout != torch.strided
            or input.is_nested
            or input.dim() != batched_dims
            or input.shape[-1] != self.input_size
        ):
            return False
        # Generators would take longer.
        for w in weights:
            if w is None or w.dtype not in wanted or w.device != device:
                return False
        for state, width in zip(states, widths):
            if (
                state.shape != (count, batch, width)
                or state.dtype not in wanted
                or state.device != device
            ):
                return False
        return True

    def _by_torch(self, input, hx, lengths=None):
        result = super().forward(input, hx)
        options = _extras.options_repr(self, _OPTIONS)
        if lengths is not None or options:
            raise TypeError(
                f"lengths= and the options of {type(self).__name__} beyond torch's need strided "
                f"input, states and parameters of one dtype out of {_extras.SERVED_DTYPES}"
            )
        return result

    def _layers(
        self,
        rows: Tensor,
        batch_sizes: Tensor | None,
        states: States,
        weights: list[Any],
        inner: bool = False,
        dense: tuple[int, int] | None = None,
    ) -> tuple[Tensor, States]:
        """All layers over packed rows (N, I): rows (N, D·P) and the final states.

        ``inner``: the caller copies the rows before a user has them. ``dense``: (T, B) for an
        output of (T, B, D·P).
        """
        if not (has_kernels(rows.device.type) or is_traced() or self._has_options()):
            return self._torchs_layers(rows, batch_sizes, states, weights)
        directions = 2 if self.bidirectional else 1
        each = len(weights) // (self.num_layers * directions)
        dtype = self._autocast_dtype(batch_sizes is not None, states)
        zoneout = _extras.zoneout_pair(self.zoneout, self.mode)
        finals: list[list[Any]] = []
        for layer in range(self.num_layers):
            at = slice(layer * directions, (layer + 1) * directions)
            group = weights[at.start * each : at.stop * each]
            # A view of all takes as long as a short sequence's steps.
            own = states if self.num_layers == 1 else [state[at] for state in states]
            output, *final = rnn_layer(
                rows,
                batch_sizes,
                own[0],
                own[1] if len(own) == 2 else None,
                group[0::each],
                group[1::each],
                group[2::each] if self.bias else [],
                group[3::each] if self.bias else [],
                group[each - 1 :: each] if self.proj_size else [],
                [getattr(self, n) for n in self._norm_names(layer)] if self.layer_norm else [],
                mode=self.mode,
                zoneout=zoneout,
                recurrent_dropout=self.recurrent_dropout or 0.0,
                training=self.training,
                recompute=self.recompute,
                inner=inner or layer < self.num_layers - 1,
                dense=dense if layer == self.num_layers - 1 else None,
            )
            finals.append(final[: len(states)])
            rows = output
            if self.dropout and self.training and layer < self.num_layers - 1:
                rows = F.dropout(output, self.dropout)
        if len(finals) == 1:
            ends = tuple(finals[0])
        else:
            ends = tuple([torch.cat(final) for final in zip(*finals)])
        if dtype is not None:
            output, ends = output.to(dtype), tuple(state.to(dtype) for state in ends)
        return output, ends

    def _has_options(self) -> bool:
        return any(getattr(self, option) for option in _OPTIONS)

    def _torchs_layers(
        self,
        rows: Tensor,
        batch_sizes: Tensor | None,
        states: States,
        weights: list[Any],
    ) -> tuple[Tensor, States]:
        """``_layers`` by torch's own operator, where it is quicker than plain code of ours."""
        operator = getattr(torch, self.mode.lower())
        hx = states if self.mode == "LSTM" else states[0]
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if batch_sizes is None:
            steps = rows.unflatten(0, (-1, states[0].shape[1]))
            output, *ends = operator(steps, hx, weights, *options, False)
        else:
            output, *ends = operator(rows, batch_sizes, hx, weights, *options)
        return output, tuple(ends)

    def _autocast_dtype(self, packed: bool, states: States) -> torch.dtype | None:
        """The dtype that torch's results have under CPU autocast where it is not autocast's.

        There torch computes the products of GRU and of packed LSTM in the lower precision, and adds
        to the state in its own.
        """
        state = states[-1]
        if state.device.type != "cpu" or not _extras.autocasting("cpu"):
            return None
        if self.mode == "GRU" or (self.mode == "LSTM" and (packed or self.proj_size)):
            return state.dtype
        return None


def _permute(states: States, order: Tensor | None) -> States:
    return states if order is None else tuple(state.index_select(1, order) for state in states)


class RNN(_Recurrent, torch.nn.RNN):
    """``torch.nn.RNN`` on fused kernels.

    Keyword-only beyond torch's arguments: ``layer_norm`` normalises both products (Ba et al.,
    2016), ``zoneout`` keeps each unit's old state with this probability (Krueger et al., 2016),
    ``recurrent_dropout`` drops units of h with one mask for all steps (Gal & Ghahramani, 2016), and
    ``recompute`` keeps only states for backward and computes gates anew. ``forward`` takes
    ``lengths``.
    """


class LSTM(_Recurrent, torch.nn.LSTM):
    """``torch.nn.LSTM`` on fused kernels.

    Keyword-only beyond torch's arguments: those of ``fastseq.RNN``; ``layer_norm`` normalises the
    cell too, and ``zoneout`` may be a pair, of h and of c.
    """


class GRU(_Recurrent, torch.nn.GRU):
    """``torch.nn.GRU`` on fused kernels.

    Keyword-only beyond torch's arguments: those of ``fastseq.RNN``.
    """


_dynamo.allow(RNN, LSTM, GRU)
