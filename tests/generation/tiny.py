"""A small decodable model in a few lines, and searches over it in plain loops."""

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

EOS, BOS = 3, 2


@dataclass
class Config:
    vocab_size: int
    pad_id: int = 0
    bos_id: int = BOS
    eos_id: int = EOS


@dataclass
class State:
    memory: Tensor  # (B, d)
    sizes: Tensor  # (B, S) alignment that the source asks for
    length: int = 0
    hidden: Tensor = field(init=False)
    attention: Tensor | None = None
    steps: int = 0
    rows: list[int] = field(default_factory=list)  # of every step

    def __post_init__(self) -> None:
        self.rewind()

    def rewind(self) -> None:
        self.length, self.hidden = 0, self.memory

    def select(self, rows: Tensor) -> None:
        self.memory, self.sizes, self.hidden = (
            x[rows] for x in (self.memory, self.sizes, self.hidden)
        )


class Tiny(torch.nn.Module):
    """The next word depends on all before it and on the source, through a small recurrent state."""

    def __init__(self, vocabulary: int, eos_bias: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.config = Config(vocabulary)
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.words, self.mix, self.out = random(vocabulary, 6), random(6, 6), random(6, vocabulary)
        self.bias = torch.nn.Parameter(torch.zeros(vocabulary, dtype=torch.float64))
        self.bias.data[EOS] = eos_bias
        self.states: list[State] = []

    def begin(
        self, source: Tensor | None = None, lengths: Tensor | None = None, *,
        batch_size: int = 0, max_length: int, cache: str, need_attention: bool = False,
    ) -> State:  # fmt: skip
        if source is None:
            memory, sizes = torch.zeros(batch_size, 6).double(), torch.zeros(batch_size, 1)
        else:
            real = torch.arange(source.shape[1]) < lengths[:, None]
            memory = (self.words[source] * real[..., None]).sum(1)
            sizes = source.double() * real
        self.states.append(State(memory, sizes))
        return self.states[-1]

    def step(self, tokens: Tensor, state: State) -> Tensor:
        assert tokens.shape[0] == len(state.memory) and tokens.shape[1] > 0
        for column in tokens.T:
            state.hidden = torch.tanh(state.hidden @ self.mix + self.words[column])
        state.length += tokens.shape[1]
        state.attention = state.sizes * tokens[:, -1:]
        state.rows.append(len(tokens))
        return state.hidden @ self.out + self.bias

    def log_probs(self, source: Tensor | None, tokens: list[int]) -> Tensor:
        """(V,) of the word after ``tokens``, the start left out."""
        hidden = (
            torch.zeros(6, dtype=torch.float64) if source is None else self.words[source].sum(0)
        )
        for token in [BOS, *tokens]:
            hidden = torch.tanh(hidden @ self.mix + self.words[token])
        logits = hidden @ self.out + self.bias.detach()
        logits[BOS] = -torch.inf
        return torch.log_softmax(logits, -1)


def factor(length: int, penalty: float) -> float:
    return ((5 + length) / 6) ** penalty


def all_sequences(
    model: Tiny, source: Tensor | None, most: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """Every result there is, best first: score and tokens."""
    found = []
    words = [w for w in range(model.config.vocab_size) if w not in (BOS, EOS)]
    for length in range(most + 1):
        for tokens in itertools.product(words, repeat=length):
            whole = [*tokens] if length == most else [*tokens, EOS]
            total = sum(
                float(model.log_probs(source, whole[:i])[word]) for i, word in enumerate(whole)
            )
            found.append((total / factor(len(whole), penalty), [*tokens]))
    return sorted(found, reverse=True)


def slow_beam_search(
    model: Tiny, source: Tensor | None, beam: int, most: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """Beam search of one sentence, as ``search_beams`` defines it."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        candidates = []
        for score, tokens in alive:
            for word, gain in enumerate(model.log_probs(source, tokens).tolist()):
                candidates.append((score + gain, [*tokens, word]))
        candidates = sorted(candidates, reverse=True)[: 2 * beam]
        for rank, (score, tokens) in enumerate(candidates):
            if rank < beam and score > -torch.inf and (tokens[-1] == EOS or length == most):
                finished.append((score / factor(length, penalty), tokens))
        finished = sorted(finished, reverse=True)[:beam]
        alive = [c for c in candidates if c[1][-1] != EOS][:beam]
        if len(finished) == beam and finished[-1][0] >= alive[0][0] / factor(length, penalty):
            break
    return [(score, tokens[:-1] if tokens[-1] == EOS else tokens) for score, tokens in finished]
