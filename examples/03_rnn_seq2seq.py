"""English to French by a plain RNN, through one vector (Sutskever et al. 2014, with tanh units).

The whole of training, written out; the later examples leave it to ``fastseq.training``.
"""

import torch
import torch.nn.functional as F
from helpers import asked_steps, show_translations

from fastseq.data import SAMPLE_TRAIN, Sequences, Tokenizer, pad_rows, read_tsv, token_batches
from fastseq.models import Seq2Seq, Seq2SeqConfig


def main(steps: int) -> None:
    torch.manual_seed(0)
    pairs = [row.fields for row in read_tsv(SAMPLE_TRAIN, [1, 2])]
    english, french = zip(*pairs)
    tokenizer = Tokenizer.train([*english, *french], vocab_size=4000)
    bos, eos, padding = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    sources = Sequences(tokenizer.encode_source_batch(english))
    targets = Sequences([bos, *ids, eos] for ids in tokenizer.encode_batch(french))

    config = Seq2SeqConfig(
        vocab_size=len(tokenizer), cell="rnn", attention=None, num_layers=1, dropout=0.1,
        share_embeddings=True, tie_embeddings=True,
    )  # fmt: skip
    model = Seq2Seq(config)
    print(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    step = epoch = 0
    while step < steps:
        sizes = sources.lengths + targets.lengths
        for indices in token_batches(sizes, 2048, shuffle=(0, epoch))[: steps - step]:
            source, source_lengths = sources.rows(indices)  # (N,), (B,)
            target, target_lengths = targets.rows(indices, skip_last=1)  # begin and words
            labels, _ = targets.rows(indices, skip_first=1)  # words and end
            logits = model(  # (N, V): a row for a target word, none for padding
                pad_rows(source, source_lengths, padding),
                source_lengths,
                pad_rows(target, target_lengths, padding),
                target_lengths,
            )
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 50 == 0:
                print(f"update {step}: loss {loss.item():.3f}")
        epoch += 1
    show_translations(model, tokenizer)


if __name__ == "__main__":
    main(asked_steps(__doc__, 300))
