"""A language model (the decoder alone, as GPT) of the docstrings of Python's library."""

import math
from collections import Counter
from pathlib import Path

import torch
from helpers import asked_steps, write_docstrings

from fastseq.data import Tokenizer, read_documents
from fastseq.generation import generate
from fastseq.models import load
from fastseq.training import load_settings, train

OUT = Path("runs/07-gpt")


def unigram_perplexity(tokenizer: Tokenizer, train_file: Path, valid_file: Path) -> float:
    """Of the model that knows how frequent each token is, and nothing else."""

    def tokens(path: Path) -> list[int]:
        texts = tokenizer.encode_batch(["\n".join(d) for d in read_documents(path)])
        return [token for text in texts for token in (*text, tokenizer.eos_id)]

    known, asked = Counter(tokens(train_file)), tokens(valid_file)
    total = known.total() + len(tokenizer)  # each token is counted once more: none is impossible
    return math.exp(-sum(math.log((known[t] + 1) / total) for t in asked) / len(asked))


def main(steps: int) -> None:
    train_file, valid_file = write_docstrings(OUT / "text")
    flags = {
        "out": str(OUT),
        "data.train": [str(train_file)],
        "data.valid": [str(valid_file)],
        "data.max_length": 128,
        "tokenizer.vocab_size": 2000,
        "model.hidden_size": 128,
        "model.ffn_size": 512,
        "model.num_layers": 2,
        "train.steps": steps,
        "train.batch_tokens": 2048,
        "train.warmup": 50,
        "train.lr": 3e-3,
        "train.log_every": 50,
    }
    scores = train(load_settings("lm", None, flags))
    model, tokenizer = load(OUT / "best"), Tokenizer.load(OUT / "best")
    baseline = unigram_perplexity(tokenizer, train_file, valid_file)
    if scores:  # none where the run had been at its end
        print(f"perplexity {scores['perplexity']:.1f}; by the tokens' frequencies {baseline:.1f}")
    prompt = tokenizer.encode("Return a new")
    draws = torch.Generator().manual_seed(0)
    [found] = generate(
        model, prefix=[prompt], max_new_tokens=40, sample=True, temperature=0.8, top_k=40,
        num_return=3, generator=draws,
    )  # fmt: skip
    for hypothesis in found:
        print(f"  {tokenizer.decode(hypothesis.tokens)}")


if __name__ == "__main__":
    main(asked_steps(__doc__, 300))
