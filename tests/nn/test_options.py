"""layer_norm, zoneout, recurrent_dropout, recompute against loops written from the papers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import fastseq
from fastseq.reference.philox import dropout_mask, philox
from tests.nn.oracle import HIDDEN, INPUT, LAYERS, padded, pair, states

Keep = Callable[[int], tuple[Tensor, Tensor]]  # of a time step: which units of h and c are new


def layer_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | float = 0.0) -> Tensor:
    """Ba, Kiros and Hinton (2016), equation 3."""
    if gamma is None:
        return x
    mean = x.mean(-1, keepdim=True)
    deviation = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(deviation + 1e-5) * gamma + beta


def loop(
    name: str,
    module: Module,
    x: Tensor,
    keep: Keep | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, one direction, a step at a time: output (T, B, H), last h and c."""
    p = dict(module.named_parameters())
    norm = [p.get(f"{n}_l0") for n in ("weight_ln_ih", "weight_ln_hh", "weight_ln_cell")]
    h = c = x.new_zeros(x.shape[1], module.hidden_size)
    outputs = []
    for t in range(x.shape[0]):
        fed = h if mask is None else h * mask
        wx = layer_norm(x[t] @ p["weight_ih_l0"].T, norm[0]) + p["bias_ih_l0"]
        wh = layer_norm(fed @ p["weight_hh_l0"].T, norm[1]) + p["bias_hh_l0"]
        c_new = c
        if name == "LSTM":
            i, f, g, o = (wx + wh).chunk(4, 1)
            c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            shown = layer_norm(c_new, norm[2], p.get("bias_ln_cell_l0", 0.0))
            h_new = torch.sigmoid(o) * torch.tanh(shown)
        elif name == "GRU":
            (xr, xz, xn), (hr, hz, hn) = wx.chunk(3, 1), wh.chunk(3, 1)
            z = torch.sigmoid(xz + hz)
            h_new = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h
        else:
            h_new = torch.tanh(wx + wh)
        if keep is not None:  # Krueger et al. (2016), equation 5
            new_h, new_c = keep(t)
            h_new = new_h * h_new + (1 - new_h) * h
            c_new = new_c * c_new + (1 - new_c) * c
        h, c = h_new, c_new
        outputs.append(h)
    return torch.stack(outputs), h, c


def seed_of_next_call() -> int:
    """The seed that a module draws for its first layer."""
    state = torch.get_rng_state()
    seed = int(torch.randint(2**62, (), dtype=torch.int64))
    torch.set_rng_state(state)
    return seed


def random_keep(seed: int, batch: int, hidden: int, rates: tuple[float, float]) -> Keep:
    """New where the element's random word is not below the rate; one element, one counter."""

    def keep(t: int) -> tuple[Tensor, Tensor]:
        counter = (t * batch + torch.arange(batch)[:, None]) * hidden + torch.arange(hidden)
        words = philox(seed, counter)
        new = [(w >= int(rate * 2**32)).double() for w, rate in zip(words, rates)]
        return new[0], new[1]

    return keep


def check(name: str, module: Module, x: Tensor, **expected: Any) -> None:
    """Values and all gradients of a module against the loop's."""
    state = torch.get_rng_state()
    outcomes = []
    for run in (
        lambda x: module(x),
        lambda x: (lambda y, h, c: (y, (h[None], c[None]) if name == "LSTM" else h[None]))(
            *loop(name, module, x, **expected)
        ),
    ):
        torch.set_rng_state(state)
        leaf = x.clone().requires_grad_()
        output, final = run(leaf)
        finals = final if name == "LSTM" else (final,)
        weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
        loss = (output * weights).sum() + sum(s.pow(2).sum() for s in finals)
        outcomes.append([output, *finals, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def scrambled(name: str, **options: Any) -> Module:
    """A float64 module whose layer-norm parameters are not at their initial ones and zeros."""
    module = getattr(fastseq, name)(INPUT, HIDDEN, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if "_ln_" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("recompute", [False, True])
def test_layer_norm(name: str, recompute: bool) -> None:
    module = scrambled(name, layer_norm=True, recompute=recompute)
    check(name, module, padded(module).double())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_zoneout(name: str, layer_norm: bool, recompute: bool) -> None:
    zoneout: Any = (0.4, 0.25) if name == "LSTM" else 0.4
    module = scrambled(name, zoneout=zoneout, layer_norm=layer_norm, recompute=recompute)
    x = padded(module).double()
    keep = random_keep(seed_of_next_call(), x.shape[1], HIDDEN, (0.4, 0.25))
    check(name, module, x, keep=keep)


@pytest.mark.parametrize("name", LAYERS)
def test_zoneout_out_of_training_is_the_expectation(name: str) -> None:
    module = scrambled(name, zoneout=0.3).eval()
    new = torch.tensor(0.7, dtype=torch.float64)
    check(name, module, padded(module).double(), keep=lambda t: (new, new))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("recompute", [False, True])
def test_recurrent_dropout(name: str, recompute: bool) -> None:
    """One mask for all steps, in training only."""
    module = scrambled(name, recurrent_dropout=0.4, recompute=recompute)
    x = padded(module).double()
    h0 = torch.zeros(1, x.shape[1], HIDDEN, dtype=torch.float64)
    mask = dropout_mask(seed_of_next_call(), h0, 0.4)[0]
    assert {round(m, 6) for m in mask.unique().tolist()} == {0.0, round(1 / 0.6, 6)}
    check(name, module, x, mask=mask)
    check(name, module.eval(), x)


@pytest.mark.parametrize("name", LAYERS)
def test_rates(name: str) -> None:
    """Zoneout holds the stated share of units, no matter which of several seeds."""
    module = getattr(fastseq, name)(1, 64, zoneout=0.3, dtype=torch.float64)
    h = torch.full((1, 200, 64), 7.0, dtype=torch.float64)
    held = []
    for _ in range(3):
        output, _ = module(
            torch.zeros(1, 200, 1, dtype=torch.float64), (h, h) if name == "LSTM" else h
        )
        held.append((output == 7.0).double().mean().item())
    assert all(abs(share - 0.3) < 0.015 for share in held)  # 3.7 sigma
    assert len(set(held)) == 3


@pytest.mark.parametrize("name", LAYERS)
def test_recompute_gives_the_same_gradients(name: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.2}
    kept, _ = pair(name, INPUT, HIDDEN, dtype=torch.float64, **options)
    again = getattr(fastseq, name)(INPUT, HIDDEN, recompute=True, dtype=torch.float64, **options)
    again.load_state_dict(kept.state_dict())
    x = padded(kept).double()
    for module in (kept, again):
        torch.manual_seed(0)
        module(x)[0].pow(2).sum().backward()
    for a, b in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_all_options_together(name: str) -> None:
    """Stacked, both directions, projections: derivatives to the second order are consistent."""
    extra = {"proj_size": 2} if name == "LSTM" else {}
    module = getattr(fastseq, name)(
        2, 3, 2, bidirectional=True, dropout=0.3, layer_norm=True, zoneout=0.2,
        recurrent_dropout=0.3, dtype=torch.float64, **extra,
    )  # fmt: skip
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = states(name, module, 2)
    hx = [s.double().requires_grad_() for s in (hx if name == "LSTM" else (hx,))]
    weights = [p for n, p in module.named_parameters() if n.endswith("_l1")]

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        start = tuple(rest[: len(hx)])
        output, final = module(x, start if name == "LSTM" else start[0])
        return (output, *final) if name == "LSTM" else (output, final)

    inputs = (x, *hx, *weights)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_and_initial_values(name: str) -> None:
    """Layer-norm's parameters come after torch's, which keep their initial values."""
    torch.manual_seed(0)
    plain = getattr(torch.nn, name)(INPUT, HIDDEN, 2, bidirectional=True)
    torch.manual_seed(0)
    module = getattr(fastseq, name)(INPUT, HIDDEN, 2, bidirectional=True, layer_norm=True)
    for _ in range(2):
        ours, theirs = module.state_dict(), plain.state_dict()
        own = list(ours)[len(theirs) :]
        assert list(ours)[: len(theirs)] == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert all("_ln_" in key for key in own) and "weight_ln_hh_l1_reverse" in own
        for key in own:
            assert (ours[key] == float(key.startswith("weight"))).all()
        torch.manual_seed(1)
        plain.reset_parameters()
        torch.manual_seed(1)
        module.reset_parameters()
    assert plain.load_state_dict(ours, strict=False).missing_keys == []


def test_repr_shows_options() -> None:
    module = fastseq.LSTM(3, 4, 2, layer_norm=True, zoneout=(0.1, 0.0), recompute=True)
    assert repr(module) == (
        "LSTM(3, 4, num_layers=2, layer_norm=True, zoneout=(0.1, 0.0), recompute=True)"
    )
    assert repr(fastseq.GRUCell(3, 4, zoneout=0.1)) == "GRUCell(3, 4, zoneout=0.1)"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{"layer_norm": True}, {"zoneout": 0.3}])
def test_cells_take_the_layers_steps(name: str, options: dict[str, Any]) -> None:
    """A cell in a loop is the layer, out of training where zoneout is random."""
    layer = scrambled(name, **options).eval()
    cell = getattr(fastseq, name + "Cell")(INPUT, HIDDEN, dtype=torch.float64, **options).eval()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = padded(layer).double()
    state, outputs = None, []
    for row in x:
        state = cell(row, state)
        outputs.append(state[0] if name == "LSTM" else state)
    torch.testing.assert_close(torch.stack(outputs), layer(x)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_zoneout_of_cells_in_training(name: str) -> None:
    cell = getattr(fastseq, name + "Cell")(INPUT, 50, zoneout=0.5)
    h = torch.full((40, 50), 7.0)
    held = cell(torch.randn(40, INPUT), (h, h) if name == "LSTM" else h)
    for state in held if name == "LSTM" else (held,):
        assert abs((state == 7.0).double().mean().item() - 0.5) < 0.05
