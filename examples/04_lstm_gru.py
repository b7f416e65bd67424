"""The same with gates: LSTM and GRU beside the plain RNN, of equal width, data and updates."""

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import RECURRENT, asked_steps

from fastseq.training import load_settings, train


def main(steps: int) -> None:
    scores = {}
    for arch in ("rnn", "lstm", "gru"):
        with TemporaryDirectory() as folder:
            flags = {
                **RECURRENT,
                "arch": arch,
                "out": str(Path(folder) / arch),
                "train.steps": steps,
                "train.samples": 0,
            }
            scores[arch] = train(load_settings("translate", None, flags))
    for arch, score in scores.items():
        print(f"{arch}: perplexity {score['perplexity']:.1f} of the validation sentences")


if __name__ == "__main__":
    main(asked_steps(__doc__, 120))
