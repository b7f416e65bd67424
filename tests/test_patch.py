"""fastseq.patch, unpatch, patch_torch."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import fastseq
from fastseq.patch import COUNTERPARTS

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


class Tagger(Module):
    """A model of somebody else's, with a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.encoder = torch.nn.ModuleDict(
            {
                "lstm": torch.nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True),
                "gru": torch.nn.GRU(12, 6, batch_first=True),
            }
        )
        self.cell = torch.nn.GRUCell(6, 6)
        self.again = self.encoder["gru"]
        self.head = torch.nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.encoder["lstm"](self.embed(tokens))
        x, h = self.again(x)
        return self.head(self.cell(x.mean(1), h[0]))


def test_a_model_in_training() -> None:
    """Parameters, optimizer state, hooks and identity survive; the model goes on learning alike."""
    torch.manual_seed(0)
    model = Tagger().double()
    tokens = torch.randint(10, (5, 7))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen: list[int] = []
    model.encoder["lstm"].register_forward_hook(lambda *_: seen.append(1))

    def step(model: Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        model(tokens).pow(2).sum().backward()
        optimizer.step()

    step(model, optimizer)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    parameters, modules = list(model.parameters()), list(model.modules())

    report = fastseq.patch(model)
    assert report.swapped == {
        "encoder.lstm": "fastseq.nn.rnn.LSTM",
        "encoder.gru": "fastseq.nn.rnn.GRU",
        "again": "fastseq.nn.rnn.GRU",
        "cell": "fastseq.nn.cells.GRUCell",
    }
    assert report.left == {}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert model.again is model.encoder["gru"]

    seen.clear()
    for _ in range(3):
        step(model, optimizer)
        step(twin, twin_optimizer)
    assert seen
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)

    back = fastseq.unpatch(model)
    assert back.swapped.keys() == report.swapped.keys() and back.left == {}
    assert type(model.cell) is torch.nn.GRUCell
    torch.testing.assert_close(model(tokens), twin(tokens))


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself(name: str) -> None:
    module = getattr(torch.nn, name)(3, 4)
    x = torch.randn(2, 3) if "Cell" in name else torch.randn(5, 2, 3)
    expected = module(x)
    printed = repr(module)
    report = fastseq.patch(module)
    assert type(module) is getattr(fastseq, name) and list(report.swapped) == [""]
    assert repr(module) == printed
    torch.testing.assert_close(module(x), expected)
    assert type(pickle.loads(pickle.dumps(module))) is getattr(fastseq, name)
    assert type(copy.deepcopy(module)) is getattr(fastseq, name)
    fastseq.unpatch(module)
    assert type(module) is getattr(torch.nn, name)
    torch.testing.assert_close(module(x), expected)


def test_what_is_left_and_why() -> None:
    class Own(torch.nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
            return super().forward(2 * input, hx)

    replaced = torch.nn.RNN(3, 4)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    model = torch.nn.ModuleDict(
        {
            "own": Own(3, 4),
            "replaced": replaced,
            "ours": fastseq.GRU(3, 4),
            "linear": torch.nn.Linear(3, 4),
            "lstm": torch.nn.LSTM(3, 4),
        }
    )
    x = torch.randn(5, 2, 3)
    expected = model["own"](x)[0]
    report = fastseq.patch(model)
    assert report.swapped == {"lstm": "fastseq.nn.rnn.LSTM"}
    assert report.left.keys() == {"own", "replaced", "ours"}
    assert "may differ from its base class" in report.left["own"]
    assert "replaced on the instance" in report.left["replaced"]
    assert report.left["ours"] == "already fastseq.nn.rnn.GRU"
    assert type(model["own"]) is Own and torch.equal(model["own"](x)[0], expected)
    text = str(report)
    assert text.startswith("1 swapped, 3 left")
    assert all(name in text for name in ("own", "replaced", "ours", "lstm"))
    assert "linear" not in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_scripted_and_quantized() -> None:
    model = torch.nn.ModuleDict(
        {
            "scripted": torch.jit.script(torch.nn.GRUCell(3, 4)),
            "quantized": torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(torch.nn.LSTM(3, 4))
            )[0],
        }
    )
    report = fastseq.patch(model)
    assert report.swapped == {}
    assert report.left == {"scripted": "compiled by TorchScript", "quantized": "quantized"}
    assert model["scripted"](torch.randn(2, 3)).shape == (2, 4)
    assert model["quantized"](torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_parametrized() -> None:
    """Its class is generated; afterwards the parametrization still computes and comes off."""
    module = torch.nn.LSTM(3, 4)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = module(x)[0]
    assert fastseq.patch(module).swapped == {"": "fastseq.nn.rnn.LSTM"}
    assert isinstance(module, fastseq.LSTM)
    torch.testing.assert_close(module(x)[0], expected)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.allclose(module(x)[0], expected)
    fastseq.unpatch(module)
    assert not isinstance(module, fastseq.LSTM)
    fastseq.patch(module)
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is fastseq.LSTM


def test_options_that_torch_lacks_stay() -> None:
    model = torch.nn.ModuleList([fastseq.GRU(3, 4, zoneout=0.1), fastseq.GRU(3, 4)])
    report = fastseq.unpatch(model)
    assert report.swapped == {"1": "torch.nn.modules.rnn.GRU"}
    assert report.left == {"0": "torch has no zoneout=0.1"}
    assert type(model[0]) is fastseq.GRU


def test_compiled_before_and_after() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LSTM(3, 4))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(5, 2, 3)
    expected = compiled(x)[0]
    fastseq.patch(compiled)
    assert type(model[1]) is fastseq.LSTM
    torch.testing.assert_close(compiled(x)[0], expected)


def names_now() -> dict[str, type]:
    return {name: getattr(torch.nn, name) for name in NAMES}


def test_patch_torch() -> None:
    before = names_now()
    with fastseq.patch_torch():
        model = Tagger()
        assert type(model.again) is fastseq.GRU and type(model.cell) is fastseq.GRUCell
        assert torch.nn.modules.rnn.LSTM is torch.nn.modules.LSTM is fastseq.LSTM
        assert isinstance(model.again, torch.nn.GRU)
        torch.nn.LSTM(3, 4, num_layers=2, dropout=0.1)(torch.randn(5, 2, 3))
    assert names_now() == before
    assert torch.nn.modules.rnn.LSTM is before["LSTM"]
    assert isinstance(model.again, torch.nn.GRU)


def test_patch_torch_nests_and_survives_exceptions() -> None:
    before = names_now()
    with fastseq.patch_torch():
        with fastseq.patch_torch():
            assert torch.nn.LSTM is fastseq.LSTM
        assert torch.nn.LSTM is fastseq.LSTM
        with pytest.raises(ZeroDivisionError), fastseq.patch_torch():
            raise ZeroDivisionError
        assert torch.nn.LSTM is fastseq.LSTM
    assert names_now() == before


def test_every_counterpart_adds_no_state() -> None:
    """A class swap is all there is to it only while instances hold the same attributes."""
    for theirs, ours in COUNTERPARTS.items():
        assert issubclass(ours, theirs)
        swapped, built = theirs(3, 4), ours(3, 4)
        for attribute in vars(built).keys() - vars(swapped).keys():
            assert hasattr(ours, attribute)
