"""Forward, gradients and training as the same architecture built from torch.nn."""

import pytest
import torch
from torch import Tensor, nn

from fastseq.models import BERT, GPT, BERTConfig, Model
from tests.models.oracle import counterpart
from tests.models.small import ATTENTION, SOURCE_LENGTHS, gpt, seq2seq, sources, transformer

TARGET_LENGTHS = torch.tensor([4, 9, 6])
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0}


def bert(**options) -> Model:
    return BERT(BERTConfig(**ATTENTION, **PLAIN, num_layers=2, pooler=False, **options))


def recurrent(cell: str, attention: str | None, fed: bool = False, both: bool = True) -> Model:
    return seq2seq(
        cell=cell, attention=attention, input_feeding=fed, bidirectional=both,
        share_embeddings=fed, dropout=0.0,
    )  # fmt: skip


CASES = {
    "transformer": lambda: transformer(**PLAIN),
    "transformer-post-gelu": lambda: transformer(**PLAIN, norm_first=False, activation="gelu"),
    "transformer-learned-untied": lambda: transformer(
        **PLAIN, positions="learned", share_embeddings=False, tie_embeddings=False
    ),
    "gpt": lambda: gpt(**PLAIN),
    "gpt-post-untied": lambda: gpt(**PLAIN, norm_first=False, tie_embeddings=False),
    "bert": bert,
    "bert-pre-sinusoidal": lambda: bert(norm_first=True, positions="sinusoidal"),
    "rnn": lambda: recurrent("rnn", None),
    "rnn-general-fed": lambda: recurrent("rnn", "general", fed=True),
    "lstm-oneway": lambda: recurrent("lstm", None, both=False),
    "lstm-additive": lambda: recurrent("lstm", "additive"),
    "lstm-dot-fed": lambda: recurrent("lstm", "dot", fed=True),
    "gru-dot": lambda: recurrent("gru", "dot"),
    "gru-general-oneway": lambda: recurrent("gru", "general", both=False),
    "gru-additive-fed": lambda: recurrent("gru", "additive", fed=True),
}


def arguments(model: Model) -> tuple[Tensor, ...]:
    target = torch.randint(4, 37, (3, int(TARGET_LENGTHS.max())))
    if isinstance(model, GPT):
        return target, TARGET_LENGTHS
    if isinstance(model, BERT):
        return target, TARGET_LENGTHS, torch.randint(0, 2, target.shape)
    return sources(), SOURCE_LENGTHS, target, TARGET_LENGTHS


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name: str) -> None:
    ours = CASES[name]().double()
    for parameter in ours.parameters():  # many are 0 or 1 at the start
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs, given = counterpart(ours), arguments(ours)
    found, wanted = ours(*given), theirs(*given)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    wanted.backward(upstream)
    for mine, parameter, rows in theirs.pairs(ours):
        assert mine.grad is not None and mine.grad.any()
        torch.testing.assert_close(mine.grad, parameter.grad[rows], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["transformer", "transformer-post-gelu", "gpt", "bert", "lstm-additive", "gru-dot"]
)
def test_training_goes_the_same_way(name: str, dtype: torch.dtype) -> None:
    """Hundreds of updates on the same batches: the loss falls, and by as much."""
    ours = CASES[name]().to(dtype)
    theirs = counterpart(ours)
    heads = [nn.Identity(), nn.Identity()]
    if isinstance(ours, BERT):
        heads = [nn.Linear(12, 37).to(dtype) for _ in range(2)]
        heads[1].load_state_dict(heads[0].state_dict())
    models = [nn.ModuleList([ours, heads[0]]), nn.ModuleList([theirs, heads[1]])]
    optimizers = [torch.optim.Adam(model.parameters(), lr=3e-3) for model in models]
    batches = [arguments(ours) for _ in range(4)]
    real = torch.arange(int(TARGET_LENGTHS.max())) < TARGET_LENGTHS[:, None]
    curves: list[list[float]] = [[], []]
    updates = 300 if dtype == torch.float32 else 100
    for step in range(updates):
        given = batches[step % 4]
        words = given[2 if len(given) == 4 else 0][real]
        for (model, head), optimizer, curve in zip(models, optimizers, curves, strict=True):
            loss = nn.functional.cross_entropy(head(model(*given)), words)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            curve.append(loss.item())
    mine, others = torch.tensor(curves, dtype=torch.float64)
    grown = torch.arange(1, updates + 1)
    assert mine[-4:].mean() < 0.8 * mine[:4].mean()
    bound = 5e-6 if dtype == torch.float32 else 1e-13
    assert ((mine - others).abs() <= bound * grown).all()
