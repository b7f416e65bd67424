"""What nn.LSTM does not have: lengths without packing, layer-norm, zoneout, recurrent dropout.

A language model of characters (bytes) on the sample's French sentences, in three variants.
"""

import math

import torch
import torch.nn.functional as F
from helpers import asked_steps
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastseq
from fastseq.data import SAMPLE_TRAIN, SAMPLE_VALID, Sequences, pad_rows, read_tsv, token_batches

NEWLINE = 10  # begins and ends a sentence
VARIANTS = {
    "plain": {},
    "layer-norm": {"layer_norm": True},
    "layer-norm, zoneout, recurrent dropout": {
        "layer_norm": True,
        "zoneout": 0.05,
        "recurrent_dropout": 0.1,
    },
}


class Characters(torch.nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 64)
        self.lstm = fastseq.LSTM(64, 256, batch_first=True, **options)
        self.output = torch.nn.Linear(256, 256)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.embedding(tokens), lengths=lengths)  # zeros at padding
        return self.output(hidden)  # (B, T, 256)


def read(path) -> Sequences:
    return Sequences([NEWLINE, *row.fields[0].encode(), NEWLINE] for row in read_tsv(path, [2]))


def bits(model: Characters, sentences: Sequences, indices: list[int]) -> torch.Tensor:
    """Mean bits that the model needs for a byte of these sentences."""
    tokens, lengths = sentences.rows(indices, skip_last=1)
    labels, _ = sentences.rows(indices, skip_first=1)
    logits = model(pad_rows(tokens, lengths, 0), lengths)
    wanted = pad_rows(labels, lengths, -100)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100) / math.log(2)


def compare_with_packing() -> None:
    lstm = fastseq.LSTM(64, 256, batch_first=True)
    x, lengths = torch.randn(8, 50, 64), torch.randint(1, 51, (8,))
    output, _ = lstm(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    unpacked, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=50)
    print(f"lengths= and a PackedSequence differ by {(output - unpacked).abs().max():.1e}")


def main(steps: int) -> None:
    torch.manual_seed(0)
    compare_with_packing()
    train, valid = read(SAMPLE_TRAIN), read(SAMPLE_VALID)
    for name, options in VARIANTS.items():
        torch.manual_seed(0)
        model = Characters(**options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        plan = token_batches(train.lengths, 2048, shuffle=(0, 0))
        for indices in plan[:steps]:
            optimizer.zero_grad()
            bits(model, train, indices).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()  # neither zoneout nor dropout
        with torch.no_grad():
            every = list(range(len(valid)))
            print(f"{name}: {bits(model, valid, every):.3f} bits a byte after {steps} updates")


if __name__ == "__main__":
    main(asked_steps(__doc__, 100))
