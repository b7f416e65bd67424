"""torch.compile refuses every nn.LSTM, nn.GRU and nn.RNN, for it would unroll torch's own.

Subclasses included. Ours are one operator a layer, so they are let through; torch's stay refused.
"""

import functools
from types import ModuleType

from .._after_import import after_import


def _let_through(builder: ModuleType, classes: tuple[type, ...]) -> None:
    from torch._dynamo import config

    variable_builder = getattr(builder, "VariableBuilder", None)
    if variable_builder is None or not hasattr(config, "allow_rnn"):
        return
    original = variable_builder.wrap_module

    @functools.wraps(original)
    def wrap_module(self, value):
        if not isinstance(value, classes):
            return original(self, value)
        with config.patch(allow_rnn=True):
            return original(self, value)

    variable_builder.wrap_module = wrap_module


def allow(*classes: type) -> None:
    """Lets torch.compile trace into modules of these classes.

    Its compiler takes seconds to import, so this waits until somebody else does.
    """
    after_import("torch._dynamo.variables.builder", lambda builder: _let_through(builder, classes))
