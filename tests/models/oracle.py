"""The same architectures built from torch.nn, on padded batches, with the same weights."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastseq.models import BERT, GPT, Model, Seq2Seq, Transformer
from fastseq.models.layers import Embedding, Stack

# Our parameter, theirs, and which of its rows ours is.
Pairs = Iterator[tuple[Tensor, Tensor, slice]]
ALL = slice(None)
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def padding(lengths: Tensor, steps: int) -> Tensor:
    return torch.arange(steps) >= lengths[:, None]


def causal(steps: int) -> Tensor:
    return torch.ones(steps, steps, dtype=torch.bool).triu(1)


def sinusoids(steps: int, width: int) -> Tensor:
    """Section 3.5 of arXiv 1706.03762, term by term; even columns first, then odd ones."""
    table = torch.tensor(
        [
            [
                (math.sin if i % 2 == 0 else math.cos)(pos / 10000 ** (2 * (i // 2) / width))
                for i in range(width)
            ]
            for pos in range(steps)
        ],
        dtype=torch.float64,
    )
    return torch.cat([table[:, 0::2], table[:, 1::2]], 1)


class TorchEmbedding(nn.Module):
    def __init__(self, config: Any, vocab: int, segments: int = 0, norm: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.words = nn.Embedding(vocab, width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_length, width) if learned else None
        self.segments = nn.Embedding(segments, width) if segments else None
        self.norm = nn.LayerNorm(width, config.norm_eps) if norm else None
        self.scale = math.sqrt(width) if getattr(config, "scale_embeddings", False) else 1.0
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        x, steps = self.words(tokens) * self.scale, tokens.shape[1]
        if self.positions is not None:
            x = x + self.positions.weight[:steps]
        else:
            x = x + sinusoids(steps, x.shape[-1]).to(x.dtype)
        if self.segments is not None and segments is not None:
            x = x + self.segments(segments)
        return self.dropout(x if self.norm is None else self.norm(x))

    def pairs(self, ours: Embedding) -> Pairs:
        theirs = dict(self.named_parameters())
        for name, parameter in ours.named_parameters():
            yield parameter, theirs[name], ALL


def torch_stack(config: Any, num_layers: int, cross: bool = False) -> nn.Module:
    layer = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    stack = nn.TransformerDecoder if cross else nn.TransformerEncoder
    activation = {"relu": nn.functional.relu, "gelu": nn.functional.gelu}.get(config.activation)
    if activation is None:
        activation = nn.GELU("tanh")
    first = layer(
        config.hidden_size, config.num_heads, config.ffn_size, config.dropout, activation,
        config.norm_eps, batch_first=True, norm_first=config.norm_first,
    )  # fmt: skip
    last = nn.LayerNorm(config.hidden_size, config.norm_eps) if config.norm_first else None
    options = {} if cross else {"enable_nested_tensor": False}
    return stack(first, num_layers, last, **options)


def stack_pairs(ours: Stack, theirs: nn.Module) -> Pairs:
    for mine, layer in zip(ours.layers, theirs.layers, strict=True):
        width = layer.linear1.in_features
        modules = [
            (mine.attention.out, layer.self_attn.out_proj),
            (mine.attention_norm, layer.norm1),
            (mine.feed_forward.up, layer.linear1),
            (mine.feed_forward.down, layer.linear2),
        ]
        blocks = [(mine.attention.qkv, layer.self_attn, ALL)]
        if mine.cross_attention is None:
            modules.append((mine.feed_forward_norm, layer.norm2))
        else:
            cross, other = mine.cross_attention, layer.multihead_attn
            modules += [
                (cross.out, other.out_proj),
                (mine.cross_attention_norm, layer.norm2),
                (mine.feed_forward_norm, layer.norm3),
            ]
            blocks += [(cross.q, other, slice(0, width)), (cross.kv, other, slice(width, None))]
        for a, b in modules:
            yield a.weight, b.weight, ALL
            yield a.bias, b.bias, ALL
        for a, b, rows in blocks:
            yield a.weight, b.in_proj_weight, rows
            yield a.bias, b.in_proj_bias, rows
    if ours.norm is not None:
        yield ours.norm.weight, theirs.norm.weight, ALL
        yield ours.norm.bias, theirs.norm.bias, ALL


class TorchTransformer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.source = TorchEmbedding(config, config.vocab_size)
        self.target = TorchEmbedding(config, config.vocab_size)
        if config.share_embeddings:
            self.target.words = self.source.words
        self.encoder = torch_stack(config, config.encoder_layers)
        self.decoder = torch_stack(config, config.decoder_layers, cross=True)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.target.words.weight

    def forward(self, source, source_lengths, target, target_lengths) -> Tensor:
        left_out = padding(source_lengths, source.shape[1])
        memory = self.encoder(self.source(source), src_key_padding_mask=left_out)
        out = self.decoder(
            self.target(target), memory, causal(target.shape[1]), memory_key_padding_mask=left_out,
            tgt_key_padding_mask=padding(target_lengths, target.shape[1]),
        )  # fmt: skip
        return self.output(out)[~padding(target_lengths, target.shape[1])]

    def pairs(self, ours: Transformer) -> Pairs:
        yield from self.source.pairs(ours.source_embedding)
        yield from self.target.pairs(ours.target_embedding)
        yield from stack_pairs(ours.encoder, self.encoder)
        yield from stack_pairs(ours.decoder, self.decoder)
        yield ours.output.weight, self.output.weight, ALL


class TorchGPT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embedding = TorchEmbedding(config, config.vocab_size)
        self.decoder = torch_stack(config, config.num_layers)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.embedding.words.weight

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        left_out, mask = padding(lengths, tokens.shape[1]), causal(tokens.shape[1])
        out = self.decoder(self.embedding(tokens), mask, left_out)
        return self.output(out)[~left_out]

    def pairs(self, ours: GPT) -> Pairs:
        yield from self.embedding.pairs(ours.embedding)
        yield from stack_pairs(ours.decoder, self.decoder)
        yield ours.output.weight, self.output.weight, ALL


class TorchBERT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embedding = TorchEmbedding(config, config.vocab_size, config.num_segments, norm=True)
        self.encoder = torch_stack(config, config.num_layers)

    def forward(self, tokens: Tensor, lengths: Tensor, segments: Tensor) -> Tensor:
        left_out = padding(lengths, tokens.shape[1])
        x = self.embedding(tokens, segments)
        return self.encoder(x, src_key_padding_mask=left_out)[~left_out]

    def pairs(self, ours: BERT) -> Pairs:
        yield from self.embedding.pairs(ours.embedding)
        yield from stack_pairs(ours.encoder, self.encoder)


class TorchSeq2Seq(nn.Module):
    """Step by step, one formula after the other; parameters are named as ours."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        directions = 2 if config.bidirectional else 1
        self.source_embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.target_embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        if config.share_embeddings:
            self.target_embedding = self.source_embedding
        cell = CELLS[config.cell]
        self.encoder = cell(
            config.embedding_size, width // directions, config.num_layers,
            batch_first=True, bidirectional=config.bidirectional,
        )  # fmt: skip
        states = config.num_layers * (2 if config.cell == "lstm" else 1)
        bridges = states if config.bidirectional else 0
        self.bridge = nn.ModuleList(nn.Linear(width, width) for _ in range(bridges))
        fed = width if config.input_feeding else 0
        self.decoder = cell(config.embedding_size + fed, width, config.num_layers, batch_first=True)
        attention = nn.Module()
        if config.attention == "additive":
            attention.w_query = nn.Parameter(torch.empty(width, width))
            attention.w_key = nn.Parameter(torch.empty(width, width))
            attention.v = nn.Parameter(torch.empty(width))
            attention.bias = nn.Parameter(torch.empty(width))
        elif config.attention == "general":
            attention.weight = nn.Parameter(torch.empty(width, width))
        self.attention = attention
        if config.attention:
            self.combine = nn.Linear(2 * width, width, bias=False)
        self.output = nn.Linear(width, config.vocab_size)
        if config.tie_embeddings:
            self.output.weight = self.target_embedding.weight

    def forward(self, source, source_lengths, target, target_lengths) -> Tensor:
        packed = pack_padded_sequence(
            self.source_embedding(source), source_lengths, batch_first=True, enforce_sorted=False
        )
        outputs, states = self.encoder(packed)
        memory, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        states, left_out = self._bridged(states), padding(source_lengths, source.shape[1])
        read = torch.zeros(len(source), self.config.hidden_size, dtype=memory.dtype)
        reads = []
        for word in target.unbind(1):
            x = self.target_embedding(word)
            if self.config.input_feeding:
                x = torch.cat([x, read], 1)
            out, states = self.decoder(x[:, None], states)
            read = out[:, 0]
            if self.config.attention:
                weights = self._scores(read, memory).masked_fill(left_out, -torch.inf).softmax(1)
                context = (weights[:, :, None] * memory).sum(1)
                read = self.combine(torch.cat([context, read], 1)).tanh()
            reads.append(read)
        rows = torch.stack(reads, 1)[~padding(target_lengths, target.shape[1])]
        return self.output(rows)

    def _bridged(self, states):
        kinds = states if isinstance(states, tuple) else (states,)
        if not self.config.bidirectional:
            return states
        result = []
        for which, state in enumerate(kinds):
            layers = []
            for i in range(self.config.num_layers):
                both = torch.cat([state[2 * i], state[2 * i + 1]], 1)
                moved = self.bridge[i * len(kinds) + which](both)
                layers.append(moved.tanh() if which == 0 else moved)
            result.append(torch.stack(layers))
        return tuple(result) if len(result) > 1 else result[0]

    def _scores(self, query: Tensor, memory: Tensor) -> Tensor:
        own, kind = self.attention, self.config.attention
        if kind == "additive":
            both = (query @ own.w_query.T)[:, None] + memory @ own.w_key.T + own.bias
            return both.tanh() @ own.v
        if kind == "general":
            query = query @ own.weight.T
        return (memory @ query[:, :, None]).squeeze(2)

    def pairs(self, ours: Seq2Seq) -> Pairs:
        theirs = dict(self.named_parameters())
        for name, parameter in ours.named_parameters():
            yield parameter, theirs[name], ALL


COUNTERPARTS = {
    Transformer: TorchTransformer,
    GPT: TorchGPT,
    BERT: TorchBERT,
    Seq2Seq: TorchSeq2Seq,
}


def counterpart(ours: Model) -> nn.Module:
    """The same model from torch.nn with the same weights, all of which it has."""
    theirs = COUNTERPARTS[type(ours)](ours.config).to(next(ours.parameters()).dtype)
    given, taken = set(), dict.fromkeys(theirs.parameters(), 0)
    for mine, parameter, rows in theirs.pairs(ours):
        parameter.data[rows] = mine.data
        if mine not in given:
            taken[parameter] += mine.numel()
        given.add(mine)
    assert given == {p for n, p in ours.named_parameters() if not n.startswith("pooler")}
    assert all(count == parameter.numel() for parameter, count in taken.items())
    return theirs
