"""torch.compile refuses every nn.LSTM, nn.GRU and nn.RNN, for it would unroll torch's own.

Subclasses included. Ours are one operator a layer, so they are let through; torch's stay refused.
"""

import functools
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

_BUILDER = "torch._dynamo.variables.builder"


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


class _AfterImport(importlib.abc.MetaPathFinder):
    """Acts once torch's compiler is imported: importing it takes seconds, so not before."""

    def __init__(self, classes: tuple[type, ...]) -> None:
        self.classes = classes

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _let_through(module, self.classes)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def allow(*classes: type) -> None:
    """Lets torch.compile trace into modules of these classes."""
    if _BUILDER in sys.modules:
        _let_through(sys.modules[_BUILDER], classes)
    else:
        sys.meta_path.insert(0, _AfterImport(classes))
