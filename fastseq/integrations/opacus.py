"""Opacus knows a layer by its exact class: ours are refused and replaced where torch's are.

``ModuleValidator.validate`` names a layer whose gradients per sample Opacus cannot take, and
``fix`` puts its own in place. Without an entry ours would pass unseen.
"""

from types import ModuleType
from typing import Any

from torch.nn import Module

from .._after_import import after_import
from ..patch import COUNTERPARTS, unpatch


def _register(validators: ModuleType) -> None:
    registry = validators.ModuleValidator
    for theirs, ours in COUNTERPARTS.items():
        if theirs in registry.VALIDATORS:
            registry.VALIDATORS.setdefault(ours, registry.VALIDATORS[theirs])
        if theirs in registry.FIXERS:
            registry.FIXERS.setdefault(ours, _fixer(registry.FIXERS[theirs]))


def _fixer(fix: Any) -> Any:
    def fix_ours(module: Module, **options: Any) -> Module:
        if reasons := unpatch(module).left:
            raise ValueError(f"Opacus has no layer for this {type(module).__name__}: {reasons['']}")
        return fix(module, **options)

    return fix_ours


def register() -> None:
    """Enters our classes, now or when Opacus is imported. ``import fastseq`` calls it."""
    after_import("opacus.validators", _register)
