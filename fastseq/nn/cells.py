"""RNNCell, LSTMCell and GRUCell: one step of the layers, for loops written by hand.

A plain step is one operator on the CPU, and torch's own on a GPU, where torch fuses it. Layer-norm,
zoneout, 16-bit types on a CPU that does not multiply them, and whatever looks at operators
(compilers, torch.func), are a layer of one step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _extension
from ..ops.rnn import rnn_layer
from ..ops.rnn_cell import is_plain, rnn_cell
from . import _extras

_OPTIONS = ("layer_norm", "zoneout")


class _Cell(torch.nn.RNNCellBase):
    """What the cells share; mixed in before torch's class.

    A recurrent dropout mask would be another at every call, so the cells have none.
    """

    layer_norm: bool = False
    zoneout: float | Sequence[float] = 0.0
    _mode: str

    def __init__(
        self,
        *args,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        _extras.zoneout_pair(zoneout, self._mode)
        self.layer_norm = _extras.flag("layer_norm", layer_norm)
        self.zoneout = zoneout
        if layer_norm:
            _extras.add_norms(self, self._norm_names(), self.weight_ih, self.hidden_size)

    def _norm_names(self) -> list[str]:
        return _extras.norm_names(self._mode) if self.layer_norm else []

    def reset_parameters(self) -> None:
        super().reset_parameters()
        _extras.reset_norms(self, self._norm_names())

    def extra_repr(self) -> str:
        return super().extra_repr() + _extras.options_repr(self, _OPTIONS)

    def _weights(self) -> tuple:
        """weight_ih, weight_hh, bias_ih, bias_hh, from where they live or as somebody set them."""
        p = self._parameters
        try:
            return p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]
        except KeyError:
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def _is_plain(self, input: Tensor) -> bool:
        """Whether the call is a step without extras, converted by nobody and seen by nobody."""
        return not self.layer_norm and not self.zoneout and is_plain(input)

    def _step(self, input: Tensor, h: Tensor | None, c: Tensor | None, mode: str):
        """One step: h, with c if LSTM; None if torch's own forward should take the call.

        Args:
            input: (B, I) or (I,).
            h, c: (B, H) or (H,); None for zeros, c None unless LSTM.
        """
        if not isinstance(input, Tensor):
            return None
        plain = self._is_plain(input)
        if plain and not (input.is_cpu and _extension.available()):
            return None
        w_ih, w_hh, b_ih, b_hh = self._weights()
        hidden = self.hidden_size
        batched = input.dim() == 2
        if not batched:
            if input.dim() != 1:
                return None
            input = input[None]
            h, c = None if h is None else h[None], None if c is None else c[None]
        shape = (input.shape[0], hidden)
        if h is None:
            h = torch.zeros(shape, dtype=input.dtype, device=input.device)
            c = h if mode == "LSTM" else None
        elif h.shape != shape or (c is not None and c.shape != shape):
            return None
        mixed = not plain and _extras.autocasting(input.device.type)
        if (
            not _alike(input, (h, c, w_ih, w_hh, b_ih, b_hh), mixed)
            or input.shape[1] != self.input_size
            or hidden == 0
        ):
            return None
        if plain:
            state = rnn_cell(input, h, c, w_ih, w_hh, b_ih, b_hh, mode)
            if batched:
                return state
            return state[0] if c is None else (state[0][0], state[1][0])
        output, _, c_n = rnn_layer(
            input,
            None,
            h[None],
            None if c is None else c[None],
            [w_ih],
            [w_hh],
            [] if b_ih is None else [b_ih],
            [] if b_ih is None else [b_hh],
            [],
            [getattr(self, name) for name in self._norm_names()],
            mode=mode,
            zoneout=_extras.zoneout_pair(self.zoneout, mode),
            training=self.training,
        )
        c_n = None if c_n is None else c_n[0]
        if mixed and input.device.type == "cpu" and mode in ("LSTM", "GRU"):
            # There torch adds the products, of lower precision, to the state in its own dtype.
            dtype = h.dtype if c is None else c.dtype
            output, c_n = output.to(dtype), None if c_n is None else c_n.to(dtype)
        if not batched:
            output, c_n = output[0], None if c_n is None else c_n[0]
        return output if c_n is None else (output, c_n)

    def _by_torch(self, input, hx):
        result = super().forward(input, hx)
        options = _extras.options_repr(self, _OPTIONS)
        if options:
            raise TypeError(
                f"the options of {type(self).__name__} beyond torch's need strided input, states "
                f"and parameters of one dtype out of {_extras.SERVED_DTYPES}"
            )
        return result


def _alike(input: Tensor, others: Sequence[Tensor | None], mixed: bool) -> bool:
    """Whether dtypes and devices are what the operator takes; autocast converts all but float64."""
    dtype, device = input.dtype, input.device
    if dtype not in _extras.SERVED_DTYPES or input.layout != torch.strided:
        return False
    wanted = _extras.SERVED_DTYPES[:3] if mixed and dtype != torch.float64 else (dtype,)
    for x in others:  # a generator would take longer
        if x is not None and (x.dtype not in wanted or x.device != device):
            return False
    return True


class _PlainCell(_Cell):
    """The cells whose state is one tensor."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, H) from the input (B, I) and the state (B, H); B may be missing."""
        mode = self._mode
        if mode and (hx is None or isinstance(hx, Tensor)):
            result = self._step(input, hx, None, mode)
            if result is not None:
                return result
        return self._by_torch(input, hx)


class RNNCell(_PlainCell, torch.nn.RNNCell):
    """``torch.nn.RNNCell`` on fused kernels, with keyword-only ``layer_norm`` and ``zoneout``."""

    @property
    def _mode(self) -> str:  # type: ignore[override]
        # Unknown names are torch's forward's to reject.
        return {"tanh": "RNN_TANH", "relu": "RNN_RELU"}.get(self.nonlinearity, "")


class GRUCell(_PlainCell, torch.nn.GRUCell):
    """``torch.nn.GRUCell`` on fused kernels, with keyword-only ``layer_norm`` and ``zoneout``."""

    _mode = "GRU"


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` on fused kernels, with keyword-only ``layer_norm`` and ``zoneout``."""

    _mode = "LSTM"

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(h, c), each (B, H), from the input (B, I) and (h, c); B may be missing."""
        if hx is None:
            result = self._step(input, None, None, "LSTM")
        elif (
            isinstance(hx, (tuple, list))
            and len(hx) == 2
            and isinstance(hx[0], Tensor)
            and isinstance(hx[1], Tensor)
        ):
            result = self._step(input, hx[0], hx[1], "LSTM")
        else:
            result = None
        return self._by_torch(input, hx) if result is None else result
