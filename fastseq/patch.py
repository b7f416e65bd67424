"""Puts fastseq's modules in place of torch's: in an existing model, or in what torch.nn builds."""

import copyreg
import functools
import itertools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import Module

from . import nn
from .functional import scaled_dot_product_attention
from .nn.transformer import COUNTERPARTS as _ATTENTION

# torch's class to ours. Ours adds only methods and class attributes with defaults, so an instance
# changes over by its __class__: parameters, hooks and identity stay.
COUNTERPARTS: dict[type[Module], type[Module]] = {
    torch.nn.RNN: nn.RNN,
    torch.nn.LSTM: nn.LSTM,
    torch.nn.GRU: nn.GRU,
    torch.nn.RNNCell: nn.RNNCell,
    torch.nn.LSTMCell: nn.LSTMCell,
    torch.nn.GRUCell: nn.GRUCell,
    **_ATTENTION,
}
_THEIRS = {ours: theirs for theirs, ours in COUNTERPARTS.items()}
# A subclass may have these of its own: they call ours, or compute nothing.
_HARMLESS = {"reset_parameters", "extra_repr"}


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


def patch(model: Module) -> PatchReport:
    """Turns every torch module in ``model`` that has a counterpart here into it, in place.

    The modules stay the same objects with the same parameters, so optimizers, hooks and references
    go on. The model may itself be such a module. A subclass of a torch module that leaves
    ``forward`` to torch keeps its class as a base: methods and ``isinstance`` stay.
    """
    return _turn(model, _our_class)


def unpatch(model: Module) -> PatchReport:
    """Turns fastseq's modules in ``model`` into torch's, in place, where torch has the like."""
    return _turn(model, _torch_class)


def _turn(
    model: Module, find: Callable[[Module, type[Module]], type[Module] | str | None]
) -> PatchReport:
    """``find`` says for a module and its class what it becomes, or why it stays, or nothing."""
    report = PatchReport()
    outcomes: dict[int, tuple[dict[str, str], str]] = {}  # a shared module goes by several names
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in outcomes:
            found = find(module, _unwrapped(type(module)))
            if found is None:
                continue
            if isinstance(found, str):
                outcomes[id(module)] = (report.left, found)
            else:
                module.__class__ = _rewrapped(type(module), found)
                outcomes[id(module)] = (report.swapped, _name(found))
        group, text = outcomes[id(module)]
        group[name] = text
    return report


def _name(kind: type) -> str:
    own = vars(kind).get("_mixed_of")
    if own is not None:
        return f"{_name(own[1])} under {_name(own[0])}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _our_class(module: Module, kind: type[Module]) -> type[Module] | str | None:
    """What a module of this class becomes, or why it stays; None if it has no counterpart."""
    if isinstance(module, torch.jit.ScriptModule):
        named = getattr(module, "original_name", "") in {c.__name__ for c in COUNTERPARTS}
        return "compiled by TorchScript" if named else None
    if kind.__module__.startswith("torch.ao.") and "quant" in kind.__module__:
        return "quantized" if kind.__name__ in {c.__name__ for c in COUNTERPARTS} else None
    if any(base in _THEIRS for base in kind.__mro__):
        return f"already {_name(kind)}"
    base = next((base for base in kind.__mro__ if base in COUNTERPARTS), None)
    if base is None:
        return None
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    ours = COUNTERPARTS[base]
    added = _names(ours, base) - _HARMLESS
    # Where the class has its own forward, what of the module's work it does is not to be seen.
    if clash := added & _names(kind, base):
        return f"{_name(kind)} has its own {', '.join(sorted(clash))}; derive it from {_name(ours)}"
    instance = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    if clash := added & instance:
        return f"its {', '.join(sorted(clash))} has a meaning in {_name(ours)}"
    return ours if kind is base else _mixed(kind, ours)  # type: ignore[arg-type]


def _torch_class(module: Module, kind: type[Module]) -> type[Module] | str | None:
    """What a module of ours becomes in torch, or why it has no like there; None if not ours."""
    own = vars(kind).get("_mixed_of")
    if own is None and kind not in _THEIRS:
        for ours in _THEIRS:
            if isinstance(module, ours):
                return f"{_name(kind)} may differ from its base class"
        return None
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    options = [
        f"{option}={getattr(module, option)}"
        for option in ("layer_norm", "zoneout", "recurrent_dropout", "skip_padding")
        if getattr(module, option, 0)
    ]
    if options:
        return f"torch has no {', '.join(options)}"
    return own[0] if own else _THEIRS[kind]


def _names(kind: type, base: type) -> set[str]:
    """What ``kind`` and its bases define beyond ``base``, but for what every class has."""
    found = itertools.chain.from_iterable(
        vars(c) for c in kind.__mro__ if c not in base.__mro__ and c.__module__ != "abc"
    )
    return {name for name in found if not name.startswith("__") and name != "_abc_impl"}


@functools.cache
def _mixed(own: Any, ours: Any) -> Any:
    """``own``, a subclass of torch's class, on our class: its methods go before ours."""

    def __reduce_ex__(self: Module, protocol: Any) -> Any:
        make, arguments, *state = super(kind, self).__reduce_ex__(protocol)
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _remade, (own, ours), *state
        return make, arguments, *state

    namespace = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        "__reduce_ex__": __reduce_ex__,  # the class is found by its bases, not by its name
        "_mixed_of": (own, ours),
    }
    kind: Any = types.new_class(
        own.__name__, (own, ours), exec_body=lambda ns: ns.update(namespace)
    )
    return kind


def _remade(own: Any, ours: Any) -> Any:
    kind = _mixed(own, ours)
    return kind.__new__(kind)


def _is_wrapper(kind: type) -> bool:
    """Whether torch made the class around another: of parametrized modules, of FSDP's, of DDP's."""
    inner = kind.__bases__[-1]
    return (
        kind.__module__.startswith(("torch.nn.utils.parametrize", "torch.distributed"))
        and kind.__name__ != inner.__name__
        and kind.__name__.endswith(inner.__name__)
    )


def _unwrapped(kind: type) -> type:
    while _is_wrapper(kind):
        kind = kind.__bases__[-1]
    return kind


def _rewrapped(kind: type, inner: type) -> type:
    """``kind`` made anew around ``inner``."""
    if not _is_wrapper(kind):
        return inner
    *wrappers, old = kind.__bases__
    new = _rewrapped(old, inner)
    name = kind.__name__.removesuffix(old.__name__) + new.__name__
    namespace = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(name, (*wrappers, new), namespace)


class _Everywhere:
    """torch's constructors that build ours, while any ``patch_torch`` is on."""

    def __init__(self) -> None:
        self.modules = self.functional = 0  # contexts that ask for it
        self.originals: dict[type[Module], Any] = {}
        self.attention: Any = None
        self.lock = threading.Lock()

    def change(self, by: int, functional: bool) -> None:
        with self.lock:
            self._change(by, functional)

    def _change(self, by: int, functional: bool) -> None:
        self.modules += by
        self.functional += by * functional
        if self.modules and not self.originals:
            for theirs in COUNTERPARTS:
                self.originals[theirs] = theirs.__init__
                theirs.__init__ = self.building_ours(theirs)  # type: ignore[method-assign]
        elif not self.modules:
            for theirs, original in self.originals.items():
                theirs.__init__ = original  # type: ignore[method-assign]
            self.originals = {}
        if self.functional and self.attention is None:
            self.attention = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore[assignment]
        elif not self.functional and self.attention is not None:
            F.scaled_dot_product_attention = self.attention
            self.attention = None

    @staticmethod
    def building_ours(theirs: type[Module]) -> Callable[..., None]:
        original: Any = theirs.__init__

        @functools.wraps(original)
        def __init__(self: Module, *args: Any, **kwargs: Any) -> None:
            if type(self) is theirs:  # not a subclass, which may be anything
                self.__class__ = COUNTERPARTS[theirs]
                self.__init__(*args, **kwargs)  # type: ignore[misc]
            else:
                original(self, *args, **kwargs)

        return __init__


_everywhere = _Everywhere()


@contextmanager
def patch_torch(functional: bool = False) -> Iterator[None]:
    """Within it ``torch.nn.LSTM`` and the like build fastseq's modules, in anybody's code.

    The classes themselves stay, so ``isinstance``, pickling and subclasses do as before. A subclass
    is built as it is: ``patch`` turns those. Contexts may overlap.

    Args:
        functional: let ``torch.nn.functional.scaled_dot_product_attention`` be fastseq's, too.
            Names imported from there before are not reached.
    """
    _everywhere.change(+1, functional)
    try:
        yield
    finally:
        _everywhere.change(-1, functional)
