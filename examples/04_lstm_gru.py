"""The same with gates: LSTM and GRU beside the plain RNN, of equal width, data and updates."""

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import asked_steps

from fastseq.training import load_settings, train


def main(steps: int) -> None:
    scores = {}
    for arch in ("rnn", "lstm", "gru"):
        with TemporaryDirectory() as folder:
            flags = {
                "arch": arch,
                "out": str(Path(folder) / arch),
                "model.num_layers": 1,
                "model.dropout": 0.1,
                "model.share_embeddings": True,
                "model.tie_embeddings": True,
                "tokenizer.vocab_size": 4000,
                "train.steps": steps,
                "train.batch_tokens": 2048,
                "train.warmup": 50,
                "train.lr": 4e-3,
                "train.schedule": "cosine",
                "train.log_every": 50,
                "train.samples": 0,
            }
            scores[arch] = train(load_settings("translate", None, flags))
    for arch, score in scores.items():
        print(f"{arch}: perplexity {score['perplexity']:.1f} of the validation sentences")


if __name__ == "__main__":
    main(asked_steps(__doc__, 120))
