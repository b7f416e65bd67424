"""Puts fastseq's modules in place of torch's: in an existing model, or in torch.nn's own names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.nn.modules import activation as torch_activation
from torch.nn.modules import rnn as torch_rnn
from torch.nn.modules import transformer as torch_transformer
from torch.nn.utils import parametrize

from . import nn
from .functional import scaled_dot_product_attention
from .nn.transformer import COUNTERPARTS as _ATTENTION

# torch's class to ours. Ours adds only methods and class attributes with defaults, so an instance
# changes over by its __class__: parameters, hooks and identity stay.
COUNTERPARTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.RNN: nn.RNN,
    torch.nn.LSTM: nn.LSTM,
    torch.nn.GRU: nn.GRU,
    torch.nn.RNNCell: nn.RNNCell,
    torch.nn.LSTMCell: nn.LSTMCell,
    torch.nn.GRUCell: nn.GRUCell,
    **_ATTENTION,
}
# Modules of torch under which the classes are known.
_NAMESPACES = (torch.nn, torch.nn.modules, torch_rnn, torch_activation, torch_transformer)


@dataclass
class PatchReport:
    """What became of a model's modules, by their names in it ("" is the model itself).

    swapped: the class that each now has. left: why one that could have been swapped was not.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} swapped, {len(self.left)} left"]
        width = max((len(name or "(root)") for name in (*self.swapped, *self.left)), default=0)
        for sign, modules in (("+", self.swapped), ("-", self.left)):
            lines += [f"  {sign} {name or '(root)':<{width}}  {x}" for name, x in modules.items()]
        return "\n".join(lines)


def patch(model: torch.nn.Module) -> PatchReport:
    """Turns every torch module in ``model`` that has a counterpart here into it, in place.

    The modules stay the same objects with the same parameters, so optimizers, hooks and references
    go on. The model may itself be such a module.
    """
    return _turn(model, COUNTERPARTS)


def unpatch(model: torch.nn.Module) -> PatchReport:
    """Turns fastseq's modules in ``model`` into torch's, in place, where torch has the like."""
    return _turn(model, {ours: theirs for theirs, ours in COUNTERPARTS.items()})


def _turn(
    model: torch.nn.Module, classes: dict[type[torch.nn.Module], type[torch.nn.Module]]
) -> PatchReport:
    report = PatchReport()
    outcomes: dict[int, tuple[dict[str, str], str]] = {}  # a shared module goes by several names
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in outcomes:
            reason = _why_not(module, classes)
            if reason is not None:
                outcomes[id(module)] = (report.left, reason)
            elif _own_class(module) in classes:
                _become(module, classes[_own_class(module)])
                kind = _own_class(module)
                outcomes[id(module)] = (report.swapped, f"{kind.__module__}.{kind.__qualname__}")
            else:
                continue
        group, text = outcomes[id(module)]
        group[name] = text
    return report


def _own_class(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The module's class, or the one it had before a tensor of it was parametrized."""
    kind = type(module)
    if parametrize.is_parametrized(module) and kind.__name__.startswith("Parametrized"):
        return kind.__bases__[0]
    return kind


def _why_not(module: torch.nn.Module, classes: dict) -> str | None:
    """Why a module that seems to have a counterpart must stay as it is."""
    kind = _own_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        named = getattr(module, "original_name", "") in {c.__name__ for c in classes}
        return "compiled by TorchScript" if named else None
    if kind in classes:
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        options = [
            f"{option}={getattr(module, option)}"
            for option in ("layer_norm", "zoneout", "recurrent_dropout", "skip_padding")
            if getattr(module, option, 0)
        ]
        return f"torch has no {', '.join(options)}" if options else None
    if kind in classes.values():
        return f"already {kind.__module__}.{kind.__qualname__}"
    for theirs in classes:
        if isinstance(module, theirs):
            return f"{kind.__module__}.{kind.__qualname__} may differ from its base class"
    if kind.__module__.startswith("torch.ao.") and "quant" in kind.__module__:
        return "quantized" if kind.__name__ in {c.__name__ for c in classes} else None
    return None


def _become(module: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    """Changes the module's class; a parametrized one's generated class is generated anew."""
    current = type(module)
    if current is not _own_class(module):
        namespace = {k: v for k, v in vars(current).items() if k not in ("__dict__", "__weakref__")}
        kind = type(f"Parametrized{kind.__name__}", (kind,), namespace)
    module.__class__ = kind


@contextmanager
def patch_torch(functional: bool = False) -> Iterator[None]:
    """Within it ``torch.nn.LSTM`` and the like build fastseq's modules, in anybody's code.

    Names that were imported from torch.nn before (``from torch.nn import LSTM``) are not reached.

    Args:
        functional: let ``torch.nn.functional.scaled_dot_product_attention`` be fastseq's, too.
    """
    before = []
    try:
        for theirs, ours in COUNTERPARTS.items():
            for namespace in _NAMESPACES:
                if hasattr(namespace, theirs.__name__):
                    before.append((namespace, theirs.__name__, getattr(namespace, theirs.__name__)))
                    setattr(namespace, theirs.__name__, ours)
        if functional:
            name = "scaled_dot_product_attention"
            before.append((F, name, getattr(F, name)))
            setattr(F, name, scaled_dot_product_attention)
        yield
    finally:
        for namespace, name, value in reversed(before):
            setattr(namespace, name, value)
