"""torch.compile without a break, torch.export with a dynamic length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import fastseq
from tests.nn.oracle import BATCH, CELLS, HIDDEN, INPUT, LAYERS, packed, padded


class Backend:
    """An ahead-of-time backend that tells at which calls it was asked for a graph."""

    def __init__(self) -> None:
        self.call = 0
        self.compiled_at: set[int] = set()

    def __call__(self, graph: Any, example_inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.compiled_at.add(self.call)
        return aot_eager(graph, example_inputs)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def gradients(call: Callable[..., Any], module: Module, x: Tensor, *rest: Any) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    output, final = call(leaf, *rest)
    finals = final if isinstance(final, tuple) else (final,)
    loss = output.pow(2).sum() + sum(s.sum() for s in finals)
    return [output, *finals, *torch.autograd.grad(loss, [leaf, *module.parameters()])]


CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3},
    {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.3, "recompute": True},
]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "stacked", "options"])
def test_one_graph_for_all_lengths(name: str, config: dict[str, Any]) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN, **config)
    random = "dropout" in config or "recurrent_dropout" in config
    backend = Backend()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for backend.call, steps in enumerate((4, 6, 9, 13)):
        x = padded(module, steps)
        torch.manual_seed(steps)
        ours = gradients(compiled, module, x)
        if random:
            assert all(t.isfinite().all() for t in ours)
            continue
        for a, b in zip(ours, gradients(module, module, x), strict=True):
            torch.testing.assert_close(a, b)
    assert backend.compiled_at == {0}
    module.eval()
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("name", LAYERS)
def test_lengths(name: str) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN, bidirectional=True)
    backend = Backend()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for backend.call, steps in enumerate((4, 6, 9)):
        lengths = torch.tensor([steps - 1, 1, steps - 2, 2, 3])
        x = padded(module, steps)
        ours = gradients(lambda x, n=lengths: compiled(x, lengths=n), module, x)
        for a, b in zip(
            ours, gradients(lambda x, n=lengths: module(x, lengths=n), module, x), strict=True
        ):
            torch.testing.assert_close(a, b)
    assert backend.compiled_at == {0}


@pytest.mark.parametrize("name", LAYERS)
def test_packed(name: str) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    sequence = packed(module, ordered=False)
    torch.testing.assert_close(compiled(sequence)[0].data, module(sequence)[0].data)


@pytest.mark.slow
def test_inductor_inside_a_model() -> None:
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, INPUT)
            self.encoder = fastseq.LSTM(INPUT, HIDDEN, bidirectional=True, batch_first=True)
            self.cell = fastseq.GRUCell(2 * HIDDEN, HIDDEN)

        def forward(self, tokens: Tensor) -> Tensor:
            output, (h, _) = self.encoder(torch.relu(self.embed(tokens)))
            return self.cell(output.mean(1), h[0]).tanh()

    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for steps in (3, 5):
        tokens = torch.randint(11, (BATCH, steps))
        torch.testing.assert_close(compiled(tokens), model(tokens))
        grads = [
            torch.autograd.grad(m(tokens).sum(), list(model.parameters()))
            for m in (compiled, model)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    cell = getattr(fastseq, name)(INPUT, HIDDEN)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    x, h = torch.randn(BATCH, INPUT), torch.randn(BATCH, HIDDEN)
    hx = (h, h) if name == "LSTMCell" else h
    torch.testing.assert_close(compiled(x, hx), cell(x, hx))


def test_torchs_own_stays_refused() -> None:
    """Letting ours through must not open the door to an unrolled loop."""
    torch.compile(fastseq.LSTM(INPUT, HIDDEN), backend="eager")(torch.randn(3, BATCH, INPUT))
    compiled = torch.compile(torch.nn.LSTM(INPUT, HIDDEN), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="does not support RNN, GRU, or LSTM"):
        compiled(torch.randn(3, BATCH, INPUT))


def test_patched_and_parametrized() -> None:
    module = torch.nn.GRU(INPUT, HIDDEN)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    fastseq.patch(module)
    x = padded(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_export_with_dynamic_length(name: str, training: bool) -> None:
    module = getattr(fastseq, name)(
        INPUT, HIDDEN, 2, bidirectional=True, batch_first=True, zoneout=0.1, layer_norm=True
    ).train(training)
    dynamic = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("steps")},)
    exported = torch.export.export(module, (padded(module, 6),), dynamic_shapes=dynamic)
    for steps, batch in ((11, 5), (3, 2)):
        x = padded(module, steps, batch)
        output, final = exported.module()(x)
        if training:
            assert output.shape == (batch, steps, 2 * HIDDEN)
        else:
            torch.testing.assert_close((output, final), module(x))


@pytest.mark.parametrize("name", LAYERS)
def test_export_with_lengths(name: str) -> None:
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(fastseq, name)(INPUT, HIDDEN, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.layer(x, lengths=lengths)[0]

    model = Model()
    exported = torch.export.export(
        model,
        (torch.randn(3, 6, INPUT), torch.tensor([6, 2, 3])),
        dynamic_shapes=({1: torch.export.Dim("steps")}, None),
    )
    x, lengths = torch.randn(3, 11, INPUT), torch.tensor([4, 11, 1])
    torch.testing.assert_close(exported.module()(x, lengths), model(x, lengths))
    with pytest.raises(RuntimeError, match="Length of all samples has to be greater than 0"):
        exported.module()(x, torch.tensor([4, 0, 1]))
