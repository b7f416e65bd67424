import pytest
import torch

from fastseq.models.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_elements_are_dropped_alone_and_the_rest_scaled(p: float, dtype: torch.dtype) -> None:
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    out = dropout(x, p)
    kept = out != 0
    scale = torch.tensor(1 / (1 - p), dtype=dtype)
    torch.testing.assert_close(out[kept], scale.expand(int(kept.sum())), rtol=2e-3, atol=0)
    chance, draws = 1 - p, x.numel()
    deviation = (chance * p / draws) ** 0.5
    assert abs(kept.double().mean() - chance) < 5 * deviation
    for apart in (1, 2, 3, 4, 333):  # of one random number, of neighbours, of another row
        a, b = kept.flatten()[:-apart].double(), kept.flatten()[apart:].double()
        assert abs(torch.stack([a, b]).corrcoef()[0, 1]) < 5 / draws**0.5
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out)


def test_same_seed_same_mask() -> None:
    layer, x = Dropout(0.3), torch.randn(7, 5)
    one = layer(x)
    assert not torch.equal(layer(x), one)
    torch.manual_seed(0)
    torch.randn(7, 5)
    assert torch.equal(layer(x), one)
    assert layer.eval()(x) is x and dropout(x, 0.0) is x
    assert dropout(x[:0], 0.5).shape == (0, 5)
