"""Swap nn.LSTM in a model that exists: the same parameters and results, in less time."""

import copy
import statistics
import time

import torch
from helpers import asked_steps

import fastseq


class Tagger(torch.nn.Module):
    """Reads words, tags each: a model as one finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(5000, 256)
        self.lstm = torch.nn.LSTM(256, 256, num_layers=2, bidirectional=True, batch_first=True)
        self.tags = torch.nn.Linear(512, 17)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.words(tokens))  # (B, T, 512)
        return self.tags(hidden)  # (B, T, 17)


def seconds(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Of one forward and backward pass."""
    started = time.perf_counter()
    model(tokens).logsumexp(-1).mean().backward()
    return time.perf_counter() - started


def main(rounds: int) -> None:
    torch.manual_seed(0)
    theirs = Tagger()
    ours = copy.deepcopy(theirs)
    print(fastseq.patch(ours))  # in place: parameters stay the same objects

    tokens = torch.randint(5000, (8, 50))
    error = (ours(tokens) - theirs(tokens)).abs().max()
    for model in (ours, theirs):
        seconds(model, tokens)  # gradients, and warm caches
    pairs = zip(ours.parameters(), theirs.parameters())
    worst = max((a.grad - b.grad).abs().max() / b.grad.abs().max() for a, b in pairs)
    print(f"largest difference: {error:.1e} of outputs, {worst:.1e} of gradients, relative")

    # In turns, because a machine's speed changes from one second to the next.
    ratios = []
    for i in range(rounds):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        took = {id(model): seconds(model, tokens) for model in (first, second)}
        ratios.append(took[id(theirs)] / took[id(ours)])
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"training step, torch's time over ours: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(asked_steps(__doc__, 30))
