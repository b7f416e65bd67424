"""Small runs that the tests of training share."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from fastseq.training import load_settings, train

# A model that trains in seconds. Flags of a test go over these.
SMALL = {
    "train.batch_tokens": 600,
    "train.log_every": 1,
    "train.samples": 0,
    "train.device": "cpu",
    "train.warmup": 10,
    "tokenizer.vocab_size": 400,
    "data.max_length": 96,
}
ATTENTION = {"model.hidden_size": 32, "model.ffn_size": 64, "model.num_heads": 2}
TRANSFORMER = {**ATTENTION, "model.encoder_layers": 1, "model.decoder_layers": 1}
ENCODER = {**ATTENTION, "model.num_layers": 2}
RECURRENT = {"model.hidden_size": 32, "model.embedding_size": 32, "model.num_layers": 1}


def run(task: str, out: Path, *flags: dict[str, Any], **more: Any) -> tuple[dict[str, float], str]:
    """Scores and screen of a run; later flags go over earlier ones; ``more`` are of [train]."""
    given = dict(SMALL)
    for part in (*flags, {f"train.{key}": value for key, value in more.items()}):
        given |= part
    screen = io.StringIO()
    scores = train(load_settings(task, None, {**given, "out": str(out)}), Console(file=screen))
    return scores, screen.getvalue()


def log(out: Path, kind: str = "train") -> list[dict]:
    """Lines of a run's log without what depends on the clock."""
    entries = map(json.loads, (out / "log.jsonl").read_text().strip().split("\n"))
    return [
        {k: v for k, v in entry.items() if k != "tokens_per_second"}
        for entry in entries
        if entry["kind"] == kind
    ]


def arguments(flags: dict[str, Any]) -> list[str]:
    """Flags for the command line."""
    return [text for key, value in flags.items() for text in ("--set", f"{key}={value}")]
