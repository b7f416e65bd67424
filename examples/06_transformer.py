"""English to French by a Transformer (Vaswani et al. 2017), and the ways to decode."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from helpers import SMALL, asked_steps, show_translations

from fastseq.data import SAMPLE_VALID, Tokenizer, pad, read_tsv
from fastseq.generation import generate
from fastseq.models import load
from fastseq.training import load_settings, train

OUT = Path("runs/06-transformer")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},  # on the CPU by the fast decoder: a step is one C++ call
    "greedy, weights of int8": {"weights": torch.int8},
    "greedy, paged cache, layer by layer": {"cache": "paged"},
    "greedy, without a cache": {"use_cache": False},
    "beam 4": {"beam_size": 4},
}


def main(steps: int) -> None:
    flags = {
        **SMALL,
        "arch": "transformer",
        "out": str(OUT),
        "model.hidden_size": 128,
        "model.ffn_size": 512,
        "model.encoder_layers": 2,
        "model.decoder_layers": 2,
        "train.steps": steps,
        "train.warmup": 100,
    }
    train(load_settings("translate", None, flags))
    model, tokenizer = load(OUT / "best"), Tokenizer.load(OUT / "best")
    show_translations(model, tokenizer)
    compare_ways(model, tokenizer)


def compare_ways(model, tokenizer: Tokenizer, sentences: int = 16, rounds: int = 3) -> None:
    texts = [row.fields[0] for row in read_tsv(SAMPLE_VALID, [1, 2])][:sentences]
    encoded = [torch.tensor(tokenizer.encode_source(text)) for text in texts]
    source, lengths = pad(encoded, tokenizer.pad_id)
    written: dict[str, list[list[int]]] = {}
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):  # in turns, because a machine's speed changes
        for name, options in WAYS.items():
            started = time.perf_counter()
            found = generate(model, source, lengths, max_new_tokens=60, **options)
            took = time.perf_counter() - started
            written[name] = [best.tokens for best, *_ in found]
            speeds[name].append(sum(map(len, written[name])) / took)
    for name, each in speeds.items():
        same = sum(a == b for a, b in zip(written[name], written["greedy"]))
        speed = f"{statistics.median(each):,.0f} tokens/s"
        print(f"{name}: {speed}, {same} of {len(texts)} as greedy")


if __name__ == "__main__":
    main(asked_steps(__doc__, 400))
