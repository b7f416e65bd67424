"""BERT: learn from text without labels, then from few labels; beside the same without the first.

The text is the docstrings of Python's library. The labels say from which of the six longest topics
of Python's manual a paragraph is.
"""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import asked_steps, manual, write_docstrings

from fastseq.data import held_out
from fastseq.training import load_settings, train

HELD_OUT = 0.25


def write_labelled(folder: Path) -> tuple[Path, Path, float]:
    """Files of topic and paragraph, and the accuracy of always saying the most frequent topic."""
    topics = sorted(manual(), key=lambda item: -sum(map(len, item[1])))[:6]
    lines: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for topic, paragraphs in topics:
        for text in paragraphs:
            lines[held_out(text, HELD_OUT)].append((topic, text))
    paths = folder / "train.tsv", folder / "valid.tsv"
    for path, rows in zip(paths, lines.values()):
        path.write_text("".join(f"{topic}\t{text}\n" for topic, text in rows), encoding="utf-8")
    counts = Counter(topic for topic, _ in lines[True])
    return *paths, 100 * counts.most_common(1)[0][1] / counts.total()


def main(steps: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        train_text, valid_text = write_docstrings(folder)
        train_labels, valid_labels, most_frequent = write_labelled(folder)
        pretrained = folder / "mlm"
        model = {
            "model.hidden_size": 128,
            "model.ffn_size": 512,
            "model.num_layers": 2,
            "model.norm_first": True,
            "model.positions": "rotary",  # known from the start: learned ones take longer
        }
        common = {"data.max_length": 128, "train.batch_tokens": 2048, "train.log_every": 50}
        pretraining = {
            "out": str(pretrained),
            "data.train": [str(train_text)],
            "data.valid": [str(valid_text)],
            "tokenizer.vocab_size": 2000,
            "tokenizer.lowercase": True,
            "train.steps": steps,
            "train.warmup": 50,
            "train.lr": 2e-3,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
        }
        train(load_settings("mlm", None, {**common, **model, **pretraining}))

        fine_tuning = {
            "data.train": [str(train_labels)],
            "data.valid": [str(valid_labels)],
            "train.steps": max(1, steps // 4),
            "train.warmup": 10,
            "train.lr": 1e-3,
        }
        starts = {
            "pre-trained": {"init_encoder": str(pretrained / "best")},
            "from scratch": {"tokenizer.path": str(pretrained / "best"), **model},
        }
        accuracy = {"most frequent topic": most_frequent}
        for start, flags in starts.items():
            flags = {**common, **fine_tuning, **flags, "out": str(folder / start)}
            accuracy[start] = train(load_settings("classify", None, flags))["accuracy"]
    for start, value in accuracy.items():
        print(f"{start}: {value:.1f} % right")


if __name__ == "__main__":
    main(asked_steps(__doc__, 400))
