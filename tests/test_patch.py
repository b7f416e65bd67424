"""fastseq.patch, unpatch, patch_torch."""

import abc
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
    assert "has its own forward; derive it from fastseq.nn.rnn.GRU" in report.left["own"]
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


class Plain(torch.nn.GRU):
    """Somebody's subclass that computes as its base class does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        torch.nn.GRU.__init__(self, *args, **kwargs)
        self.calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.fresh = True


class Mixin(abc.ABC, torch.nn.RNNBase):
    @abc.abstractmethod
    def initial(self) -> Any: ...


class Forecasting(Mixin, torch.nn.LSTM):
    """As pytorch-forecasting has them."""

    def initial(self) -> Any:
        return None


class Named(torch.nn.GRU):
    """It knows one of our names by something else."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.layer_norm = torch.nn.LayerNorm(4)


class Helper(torch.nn.GRU):
    def _layers(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [Plain, Forecasting])
def test_subclasses(kind: Any) -> None:
    """Their methods, isinstance and pickling stay; the computation is ours."""
    module = kind(3, 4)
    x = torch.randn(5, 2, 3)
    expected = module(x)
    ours = "LSTM" if kind is Forecasting else "GRU"
    report = fastseq.patch(module)
    assert report.swapped == {
        "": f"fastseq.nn.rnn.{ours} under tests.test_patch.{kind.__qualname__}"
    }
    assert isinstance(module, kind) and isinstance(module, getattr(fastseq, ours))
    assert type(module).forward is getattr(fastseq, ours).forward
    assert repr(module) == repr(kind(3, 4)) and type(module).__name__ == kind.__name__
    torch.testing.assert_close(module(x), expected)
    assert kind is Forecasting or module.count() == 1
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is type(module)
        torch.testing.assert_close(twin(x), expected)
    assert fastseq.patch(module).left[""].startswith("already")
    fastseq.unpatch(module)
    assert type(module) is kind
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("kind, name", [(Named, "layer_norm"), (Helper, "_layers")])
def test_names_that_would_clash(kind: Any, name: str) -> None:
    module = kind(3, 4)
    assert name in fastseq.patch(module).left[""]
    assert type(module) is kind


def test_fully_sharded(tmp_path: Path) -> None:
    """The class that fully_shard made around torch's is made anew around ours."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), Plain(3, 4), torch.nn.GRU(3, 4))
        plain = copy.deepcopy(model)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for part in model:
            fully_shard(part, mesh=mesh)
        assert fastseq.patch(model).swapped == {
            "1": "fastseq.nn.rnn.GRU under tests.test_patch.Plain",
            "2": "fastseq.nn.rnn.GRU",
        }
        for part in model[1:]:
            assert isinstance(part, FSDPModule) and isinstance(part, fastseq.GRU)
            assert type(part).forward is fastseq.GRU.forward
        x = torch.randn(5, 2, 3)
        for at in (1, 2):
            out, expected = model[at](x)[0], plain[at](x)[0]
            torch.testing.assert_close(out, expected)
            out.sum().backward()
            expected.sum().backward()
            for p, q in zip(model[at].parameters(), plain[at].parameters(), strict=True):
                torch.testing.assert_close(p.grad.full_tensor(), q.grad)
        assert fastseq.unpatch(model).swapped["2"] == "torch.nn.modules.rnn.GRU"
        assert type(model[2]).__name__ == "FSDPGRU" and not isinstance(model[2], fastseq.GRU)
    finally:
        torch.distributed.destroy_process_group()


def constructors_now() -> list[Any]:
    return [*(theirs.__init__ for theirs in COUNTERPARTS), F.scaled_dot_product_attention]


def test_patch_torch() -> None:
    before, imported_before = constructors_now(), torch.nn.LSTM
    plain = torch.nn.LSTM(3, 4)
    with fastseq.patch_torch():
        model = Tagger()
        assert type(model.again) is fastseq.GRU and type(model.cell) is fastseq.GRUCell
        assert type(imported_before(3, 4)) is fastseq.LSTM
        assert isinstance(model.again, torch.nn.GRU)
        torch.nn.LSTM(3, 4, num_layers=2, dropout=0.1)(torch.randn(5, 2, 3))
        # What was there before, and what is somebody else's, goes on.
        assert isinstance(plain, torch.nn.LSTM)
        assert type(pickle.loads(pickle.dumps(plain))) is torch.nn.LSTM
        assert type(copy.deepcopy(plain)) is torch.nn.LSTM
        own = Plain(3, 4)
        assert type(own) is Plain and own.fresh
        assert torch.nn.GRU.forward(own, torch.randn(5, 2, 3))[0].shape == (5, 2, 4)
    assert constructors_now() == before
    assert isinstance(model.again, torch.nn.GRU)
    assert type(torch.nn.GRU(3, 4)) is torch.nn.GRU


@pytest.mark.parametrize("functional", [False, True])
def test_patch_torch_in_any_order(functional: bool) -> None:
    """Contexts nest, overlap, are left in the order they were entered, and survive exceptions."""
    before = constructors_now()
    first, second = fastseq.patch_torch(functional), fastseq.patch_torch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert type(torch.nn.LSTM(3, 4)) is fastseq.LSTM
    assert F.scaled_dot_product_attention is before[-1]
    with pytest.raises(ZeroDivisionError), fastseq.patch_torch(functional):
        raise ZeroDivisionError
    assert type(torch.nn.LSTM(3, 4)) is fastseq.LSTM
    second.__exit__(None, None, None)
    assert constructors_now() == before


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_every_counterpart_adds_no_state() -> None:
    """A class swap is all there is to it only while instances hold the same attributes."""
    for theirs, ours in COUNTERPARTS.items():
        assert issubclass(ours, theirs)
        arguments: tuple[Any, ...] = (3, 4)
        if theirs is torch.nn.MultiheadAttention or theirs.__name__.startswith("Transformer"):
            arguments = (4, 2)
        if theirs.__name__ in ("TransformerEncoder", "TransformerDecoder"):
            arguments = (getattr(torch.nn, theirs.__name__ + "Layer")(4, 2), 1)
        swapped, built = theirs(*arguments), ours(*arguments)
        for attribute in vars(built).keys() - vars(swapped).keys():
            assert hasattr(ours, attribute)


class Translator(Module):
    """A model of somebody else's, with attention in it and a layer of its own kind."""

    def __init__(self) -> None:
        super().__init__()

        class Own(torch.nn.TransformerEncoderLayer):
            def forward(self, *args: Any, **kwargs: Any) -> Tensor:
                return super().forward(*args, **kwargs)

        self.core = torch.nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True)
        self.own = Own(8, 2, 12, dropout=0.0, batch_first=True)
        self.pool = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        out = self.core(self.own(source), target)
        return self.pool(out[:, :1], out, out)[0]


@pytest.mark.parametrize("training", [False, True])
def test_attention_and_transformers(training: bool) -> None:
    model = Translator().double().train(training)
    data = [torch.randn(2, n, 8, dtype=torch.float64) for n in (5, 4)]
    expected = model(*data)
    parameters, printed = list(model.parameters()), repr(model)
    kinds = [type(m) for m in model.modules()]
    report = fastseq.patch(model)
    at = "fastseq.nn.transformer.Transformer"
    assert report.swapped == {
        "core": at,
        "core.encoder": f"{at}Encoder",
        "core.encoder.layers.0": f"{at}EncoderLayer",
        "core.encoder.layers.0.self_attn": "fastseq.nn.attention.MultiheadAttention",
        "core.decoder": f"{at}Decoder",
        "core.decoder.layers.0": f"{at}DecoderLayer",
        "core.decoder.layers.0.self_attn": "fastseq.nn.attention.MultiheadAttention",
        "core.decoder.layers.0.multihead_attn": "fastseq.nn.attention.MultiheadAttention",
        "own.self_attn": "fastseq.nn.attention.MultiheadAttention",
        "pool": "fastseq.nn.attention.MultiheadAttention",
    }
    assert report.left.keys() == {"own"} and "its own forward" in report.left["own"]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert repr(model) == printed
    torch.testing.assert_close(model(*data), expected)
    with torch.no_grad():
        torch.testing.assert_close(model(*data), expected)
    back = fastseq.unpatch(model)
    assert back.swapped.keys() == report.swapped.keys()
    assert [type(m) for m in model.modules()] == kinds
    torch.testing.assert_close(model(*data), expected)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_padding_that_torch_would_compute_stays() -> None:
    stack = fastseq.TransformerEncoder(fastseq.TransformerEncoderLayer(4, 2), 1, skip_padding=True)
    assert fastseq.unpatch(stack).left == {"": "torch has no skip_padding=True"}
    assert type(stack) is fastseq.TransformerEncoder


def test_patch_torch_reaches_attention() -> None:
    before, sdpa = constructors_now(), F.scaled_dot_product_attention
    with fastseq.patch_torch(functional=True):
        model = Translator()
        assert type(model.core) is fastseq.Transformer
        assert type(model.core.encoder) is fastseq.TransformerEncoder
        assert type(model.own.self_attn) is type(model.pool) is fastseq.MultiheadAttention
        attend = torch.nn.functional.scaled_dot_product_attention
        assert attend is fastseq.scaled_dot_product_attention
        q = torch.randn(1, 2, 40, 64, requires_grad=True)
        out = attend(q, q, q)
        assert "attentionforward" in out.grad_fn.name().lower().replace("_", "")
        torch.testing.assert_close(out, sdpa(q, q, q))
        with pytest.raises(RuntimeError):  # torch's, by way of ours
            attend(q, q[..., :3], q)
    assert constructors_now() == before
    with fastseq.patch_torch():
        assert F.scaled_dot_product_attention is sdpa
