"""LSTM with additive attention (Bahdanau et al. 2015): the decoder looks at every source word."""

from pathlib import Path

import torch
from helpers import RECURRENT, asked_steps, show_translations

from fastseq.data import Tokenizer
from fastseq.generation import generate
from fastseq.models import load
from fastseq.training import load_settings, train

OUT = Path("runs/05-attention")


def show_alignment(model, tokenizer: Tokenizer, text: str) -> None:
    """Each written token, and the source tokens that it looked at most."""
    source = tokenizer.encode_source(text)
    [[best]] = generate(model, torch.tensor([source]), max_new_tokens=40, need_attention=True)
    words = [tokenizer.decode([i]) or "</s>" for i in source]
    for token, weights in zip(best.tokens, best.attention):  # weights: (S,), their sum is 1
        top = weights.topk(min(3, len(words)))
        looked = ", ".join(f"{words[i]} {w:.2f}" for w, i in zip(top.values, top.indices))
        print(f"  {tokenizer.decode([token]):<14} {looked}")


def main(steps: int) -> None:
    flags = {**RECURRENT, "arch": "lstm-attention", "out": str(OUT), "train.steps": steps}
    train(load_settings("translate", None, flags))
    model, tokenizer = load(OUT / "best"), Tokenizer.load(OUT / "best")
    show_translations(model, tokenizer)
    show_alignment(model, tokenizer, "This field is required.")


if __name__ == "__main__":
    main(asked_steps(__doc__, 300))
