"""The layer operator: derivatives, registration, transforms. tests/nn holds values to torch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastseq.ops import rnn_layer
from fastseq.reference.rnn import GATES

MODES = list(GATES)
NAMES = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "ln")


class Problem:
    """A random layer of odd sizes, float64 by default: flat inputs and a function of them."""

    def __init__(
        self,
        mode: str,
        *,
        steps: int = 4,
        batch: int = 3,
        input_size: int = 5,
        hidden_size: int = 4,
        directions: int = 1,
        proj_size: int = 0,
        packed: bool = False,
        layer_norm: bool = False,
        bias: bool = True,
        dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> None:
        gates, width = GATES[mode] * hidden_size, proj_size or hidden_size
        self.mode, self.options = mode, options
        self.batch_sizes = torch.tensor([3, 3, 2, 1]) if packed else None
        rows = 9 if packed else steps * batch
        norms = [(gates,), (gates,)] + [(hidden_size,)] * (2 if mode == "LSTM" else 0)
        shapes = {
            "w_ih": [(gates, input_size)],
            "w_hh": [(gates, width)],
            "b_ih": [(gates,)] if bias else [],
            "b_hh": [(gates,)] if bias else [],
            "w_hr": [(proj_size, hidden_size)] if proj_size else [],
            "ln": norms if layer_norm else [],
        }

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype).requires_grad_()

        lists = [[random(*s) for s in shapes[name] * directions] for name in NAMES]
        self.lengths = [len(part) for part in lists]
        self.states = [random(directions, batch, width)]
        if mode == "LSTM":
            self.states.append(random(directions, batch, hidden_size))
        self.input = random(rows, input_size)
        self.flat = (self.input, *self.states, *(w for part in lists for w in part))
        self.seed = torch.tensor(1234567890123)

    def split(self, *flat: Tensor) -> tuple:
        """(input, batch_sizes, h0, c0, w_ih, …, ln) from the flat inputs."""
        states = 1 + len(self.states)
        lists, start = [], states
        for length in self.lengths:
            lists.append(list(flat[start : start + length]))
            start += length
        c0 = flat[2] if self.mode == "LSTM" else None
        return flat[0], self.batch_sizes, flat[1], c0, *lists

    def __call__(self, *flat: Tensor) -> tuple[Tensor, ...]:
        results = rnn_layer(*self.split(*flat), mode=self.mode, seed=self.seed, **self.options)
        return tuple(r for r in results if r is not None)


FEATURES: list[dict[str, Any]] = [
    {},
    {"directions": 2, "packed": True},
    {"bias": False},
    {"layer_norm": True, "directions": 2},
    {"layer_norm": True, "packed": True, "recompute": True},
    {"recurrent_dropout": 0.4, "packed": True},
    {"zoneout": (0.3, 0.0), "packed": True},
    {"zoneout": (0.3, 0.0), "training": False, "directions": 2},
    {"recompute": True, "directions": 2, "packed": True},
    {"recompute": True, "recurrent_dropout": 0.4, "zoneout": (0.2, 0.0)},
]
LSTM_FEATURES: list[dict[str, Any]] = [
    {"proj_size": 2, "directions": 2},
    {"zoneout": (0.3, 0.2), "proj_size": 3, "packed": True, "layer_norm": True},
    {"zoneout": (0.3, 0.2), "training": False},
]
CASES = [
    pytest.param(mode, features, id=f"{mode}-{'-'.join(map(str, features)) or 'plain'}")
    for mode in MODES
    for features in FEATURES + (LSTM_FEATURES if mode == "LSTM" else [])
]


@pytest.mark.parametrize(("mode", "features"), CASES)
def test_gradients(mode: str, features: dict[str, Any]) -> None:
    problem = Problem(mode, **features)
    assert torch.autograd.gradcheck(problem, problem.flat)
    assert torch.autograd.gradgradcheck(problem, problem.flat, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_second_gradients_in_full(mode: str) -> None:
    problem = Problem(mode, steps=3, batch=2, hidden_size=3, input_size=2)
    assert torch.autograd.gradgradcheck(problem, problem.flat)


@pytest.mark.parametrize("mode", MODES)
def test_recompute_changes_nothing(mode: str) -> None:
    """Gates computed anew from the states give the gradients of those kept."""
    kept = Problem(mode, directions=2, packed=True, hidden_size=7)
    again = Problem(mode, directions=2, packed=True, hidden_size=7, recompute=True)
    again.flat = kept.flat
    for a, b in zip(_gradients(kept), _gradients(again)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def _gradients(problem: Problem) -> tuple[Tensor, ...]:
    results = problem(*problem.flat)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(r.shape, dtype=r.dtype, generator=generator) for r in results]
    return torch.autograd.grad(results, problem.flat, upstream)


def test_random_masks_follow_the_seed() -> None:
    problem = Problem("LSTM", zoneout=(0.5, 0.5), recurrent_dropout=0.5)
    first = problem(*problem.flat)[0]
    assert torch.equal(first, problem(*problem.flat)[0])
    problem.seed = problem.seed + 1
    assert not torch.equal(first, problem(*problem.flat)[0])
    problem.seed = None
    torch.manual_seed(5)
    drawn = problem(*problem.flat)[0]
    assert not torch.equal(drawn, problem(*problem.flat)[0])
    torch.manual_seed(5)
    assert torch.equal(drawn, problem(*problem.flat)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("features", [{}, {"packed": True, "directions": 2, "layer_norm": True}])
def test_opcheck_layer(mode: str, features: dict[str, Any]) -> None:
    problem = Problem(mode, proj_size=3 if mode == "LSTM" else 0, **features)
    for recompute in (False, True):
        for save in (False, True):
            zoneout = [0.2, 0.1 if mode == "LSTM" else 0.0]
            arguments = (*problem.split(*problem.flat), problem.seed)
            if not save:
                arguments = _detached(arguments)
            opcheck(
                torch.ops.fastseq.rnn_layer.default,
                (*arguments, mode, zoneout, 0.3, True, recompute, save),
            )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_opcheck_layer_backward(mode: str, layer_norm: bool) -> None:
    problem = Problem(
        mode, directions=2, packed=True, layer_norm=layer_norm, proj_size=3 if mode == "LSTM" else 0
    )
    arguments = _detached((*problem.split(*problem.flat), problem.seed))
    options = (mode, [0.2, 0.0], 0.3, True, False)
    output, h_n, c_n, gates, cells, hn = torch.ops.fastseq.rnn_layer(*arguments, *options, True)
    grads = (
        torch.randn_like(output),
        torch.randn_like(h_n),
        torch.randn_like(c_n) if c_n.numel() else None,
    )
    for need_input, need_weights in ((True, True), (False, True), (True, False)):
        opcheck(
            torch.ops.fastseq.rnn_layer_backward.default,
            (*grads, output, gates, cells, hn, *arguments, *options, need_input, need_weights),
        )


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("mode", MODES)
def test_vmap_joins_the_batch(mode: str) -> None:
    problem = Problem(mode, directions=2)
    inputs = torch.randn(*problem.input.shape, 7, dtype=torch.float64)
    states = [torch.randn(7, *s.shape, dtype=torch.float64) for s in problem.states]
    rest = problem.flat[1 + len(states) :]

    def layer(x: Tensor, *s: Tensor) -> tuple[Tensor, ...]:
        return problem(x, *s, *rest)

    together = torch.func.vmap(layer, in_dims=(2, *[0] * len(states)))(inputs, *states)
    for i in range(7):
        for a, b in zip(together, layer(inputs[..., i], *(s[i] for s in states))):
            torch.testing.assert_close(a[i], b)


def test_vmap_over_weights_and_packed() -> None:
    problem = Problem("GRU", packed=True)
    weights = torch.randn(3, *problem.flat[3].shape, dtype=torch.float64)

    def layer(w_hh: Tensor) -> Tensor:
        return problem(*problem.flat[:3], w_hh, *problem.flat[4:])[0]

    together = torch.func.vmap(layer)(weights)
    for i in range(3):
        torch.testing.assert_close(together[i], layer(weights[i]))


@pytest.mark.parametrize("mode", MODES)
def test_functional_transforms(mode: str) -> None:
    """torch.func's grad, per-sample grad and jvp agree with ordinary autograd."""
    problem = Problem(mode, zoneout=(0.2, 0.0))
    values = tuple(x.detach() for x in problem.flat)
    weight = 1 + len(problem.states)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return problem(x, *values[1:weight], w, *values[weight + 1 :])[0].pow(2).sum()

    inputs = torch.randn(4, *values[0].shape, dtype=torch.float64)
    w = values[weight].clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(loss(w, x), w)[0] for x in inputs])
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w.detach(), inputs)
    torch.testing.assert_close(per_sample, expected)
    tangent = torch.randn_like(w)
    _, derivative = torch.func.jvp(lambda w: loss(w, inputs[0]), (w.detach(),), (tangent,))
    torch.testing.assert_close(derivative, (expected[0] * tangent).sum())


def test_compile_without_graph_breaks() -> None:
    problem = Problem("LSTM", zoneout=(0.2, 0.1), recurrent_dropout=0.2)
    compiled = torch.compile(problem, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps in (4, 6, 9):
        problem.flat = (
            torch.randn(steps * 3, 5, dtype=torch.float64).requires_grad_(),
            *problem.flat[1:],
        )
        ours, plain = compiled(*problem.flat), problem(*problem.flat)
        for a, b in zip(ours, plain):
            torch.testing.assert_close(a, b)
        grads = [
            torch.autograd.grad(r[0].sum(), problem.flat, allow_unused=True) for r in (ours, plain)
        ]
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b)
