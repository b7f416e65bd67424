"""The operator of recurrent dropout's mask: registration, transforms, and layers that draw it."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fastseq
from fastseq.ops.dropout import dropout_mask
from fastseq.reference import philox

SEED = (1 << 60) + 7


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_opcheck(probability: float) -> None:
    like = torch.randn(5, 3, 2, dtype=torch.float64).transpose(0, 2).requires_grad_()
    opcheck(dropout_mask, (SEED, like, probability))
    mask = dropout_mask(SEED, like, probability)
    assert mask.is_contiguous() and not mask.requires_grad
    assert torch.equal(mask, philox.dropout_mask(SEED, like, probability))


def test_vmap_draws_one_mask_for_all_examples() -> None:
    x = torch.randn(2, 7, 4)
    one = philox.dropout_mask(SEED, x[:, 0], 0.3)
    masks = torch.vmap(lambda e: dropout_mask(SEED, e, 0.3), in_dims=1)(x)
    assert torch.equal(masks, one.expand(7, 2, 4))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_per_sample_gradients(name: str) -> None:
    module = getattr(fastseq, name)(3, 5, recurrent_dropout=0.4, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,))[0].pow(2).sum()

    def seeded(gradient, *inputs):
        torch.manual_seed(3)
        return gradient(*inputs)

    grad = torch.func.grad(loss)
    together = seeded(torch.vmap(grad, (None, 0), randomness="same"), parameters, x)
    for i, example in enumerate(x):
        torch.testing.assert_close(
            {key: g[i] for key, g in together.items()}, seeded(grad, parameters, example)
        )


def test_compiled_layer_draws_the_same() -> None:
    module = fastseq.GRU(3, 5, recurrent_dropout=0.4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 2, 3)
    outputs = []
    for call in (module, compiled):
        torch.manual_seed(3)
        outputs.append(call(x)[0])
    torch.testing.assert_close(*outputs)
