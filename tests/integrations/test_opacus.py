"""Opacus still sees the layers that fastseq took over."""

import subprocess
import sys

import pytest
import torch

import fastseq

pytest.importorskip("opacus", reason="Opacus is not installed")

# In a process of its own: whichever of the two is imported first.
SCRIPT = """
import {first}, {second}
import torch
from opacus.validators import ModuleValidator

layers = {{"LSTM": (3, 4), "GRU": (3, 4), "MultiheadAttention": (4, 2), "Linear": (3, 4)}}
model = torch.nn.ModuleDict({{name: getattr(torch.nn, name)(*a) for name, a in layers.items()}})
before = [str(e) for e in ModuleValidator.validate(model)]
assert len(fastseq.patch(model).swapped) == 3
assert [str(e) for e in ModuleValidator.validate(model)] == before != []
fixed = ModuleValidator.fix(model)
assert ModuleValidator.is_valid(fixed)
x = torch.randn(5, 2, 3)
torch.testing.assert_close(fixed["LSTM"](x)[0], model["LSTM"](x)[0])
"""


@pytest.mark.parametrize("order", [("opacus", "fastseq"), ("fastseq", "opacus")])
def test_validator_sees_patched_layers(order: tuple[str, str]) -> None:
    script = SCRIPT.format(first=order[0], second=order[1])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_are_not_lost() -> None:
    from opacus.validators import ModuleValidator

    model = torch.nn.Sequential(fastseq.GRU(3, 4, zoneout=0.1))
    assert ModuleValidator.validate(model)
    with pytest.raises(ValueError, match=r"torch has no zoneout=0\.1"):
        ModuleValidator.fix(model)
