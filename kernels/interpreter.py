"""Triton's interpreter on the NumPy that is installed."""

from functools import cache
from types import SimpleNamespace
from typing import Any

from triton.runtime import interpreter


@cache
def convert_scalars() -> None:
    """Lets kernels use a scalar as a number, in ranges say, whatever the NumPy.

    The interpreter's scalars are arrays of one element. Triton 3.6 calls int() on them, which NumPy
    from 2.4 on takes for arrays without dimensions only.
    """
    stock = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        # Never the stock method, not even in passing: other threads' programs run meanwhile.
        def set_attr(place: Any, name: str, value: Any) -> None:
            scope.set_attr(place, name, _number if name == "__index__" else value)

        stock(tensor, SimpleNamespace(set_attr=set_attr))

    interpreter._patch_lang_tensor = patch


def _number(scalar: Any) -> int:
    return int(scalar.handle.data.item())
