"""NaN and infinities in inputs, states, parameters and gradients come out where torch has them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from tests.csrc.scan_cases import kinds
from tests.nn.oracle import pair, tensors, to

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"bidirectional": True, "num_layers": 2}),
    ("LSTM", {"proj_size": 3}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
]
# Few rows: weights are used as they stand. One sequence: its panels in pairs. Many: tiles.
SIZES = [(9, 2, 2), (33, 1, 9), (17, 20, 3)]  # hidden_size, batch, steps
SPECIAL = (float("nan"), float("inf"), -float("inf"))


def arguments(name: str, module: Any, batch: int, steps: int) -> tuple:
    count = () if name.endswith("Cell") else (len(module.all_weights),)
    width = getattr(module, "proj_size", 0) or module.hidden_size
    h = torch.randn(*count, batch, width)
    hx: Any = h
    if name.startswith("LSTM"):
        hx = (h, torch.randn(*count, batch, module.hidden_size))
    lead = (batch,) if name.endswith("Cell") else (steps, batch)
    return torch.randn(*lead, module.input_size), hx


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_come_out_as_from_torch(
    name: str, config: dict[str, Any], size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    hidden, batch, steps = size
    modules = pair(name, 5, hidden, **config)
    given = to(arguments(name, modules[0], batch, steps), dtype)
    places = len(tensors(given)) + len(list(modules[0].parameters()))

    def spoiled(module: Module, place: int, value: float) -> list[Tensor]:
        """Results with ``value`` in one element of an input, a parameter or the gradient."""
        own = to(given, dtype)
        targets = [*tensors(own), *module.to(dtype).parameters(), torch.ones(1, dtype=dtype)]
        target = targets[place].detach().view(-1)
        before = target.clone()
        target[4 % target.numel()] = value
        outputs = tensors(module(*own))
        upstream = [torch.ones_like(y) for y in outputs]
        upstream[0].view(-1)[3] = targets[-1]
        found = [*outputs, *torch.autograd.grad(outputs, targets[:-1], upstream)]
        target.copy_(before)
        return found

    for place in range(places + 1):
        for value in SPECIAL:
            ours, theirs = (spoiled(module, place, value) for module in modules)
            for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
                assert torch.equal(kinds(x), kinds(y)), (place, value, i)
