"""Settings of a training run: a TOML file, with flags over it, over the task's own."""

import dataclasses
import difflib
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .schedules import Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TaskName = Literal["translate", "lm", "mlm", "classify", "qa", "summarize"]
Arch = Literal[
    "rnn",
    "lstm",
    "gru",
    "rnn-attention",
    "lstm-attention",
    "gru-attention",
    "transformer",
    "gpt",
    "bert",
]


class ConfigError(ValueError):
    """A setting that cannot be; the message begins with the file or flag it came from."""


@dataclass(kw_only=True)
class DataSettings:
    """[data]: what is read.

    train, valid: files. Without ``valid``, the part ``valid_fraction`` of the training examples is
        held out, by a hash of their text.
    columns: those of a tab-separated file that the task reads, from 1: source and target, label and
        text, document and summary. For lm and mlm the one column, which ``FILE:COLUMN`` says for a
        file alone; none means plain text.
    max_length: tokens of the longest sequence; longer examples are left out of training.
    threshold: for numeric labels: those below it are one class, the others another.
    stride: tokens from one window over a long context to the next (qa).
    """

    train: list[str] = field(default_factory=list)
    valid: list[str] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    valid_fraction: float = 0.02
    max_length: int = 256
    threshold: float | None = None
    stride: int = 128


@dataclass(kw_only=True)
class TokenizerSettings:
    """[tokenizer]: a file, or the kind and size of one that is learned from the training data."""

    path: str | None = None
    kind: Literal["bpe", "wordpiece"] = "bpe"
    vocab_size: int = 8000
    lowercase: bool = False


@dataclass(kw_only=True)
class TrainSettings:
    """[train]: how it is learned.

    steps: updates; minutes: time budget, validation included, 0 for none. The first that is reached
        ends the run; cosine and linear schedules end at ``steps``.
    batch_tokens: tokens of an update, source and target. accumulate: parts it is computed in.
    lr: the highest learning rate. warmup: updates until it is reached.
    clip: largest norm of all gradients, 0 for none.
    teacher_forcing: how often a recurrent decoder reads the right word, not its own.
    validate_every, save_every, log_every: in updates. samples: validation sentences that are
        written out and scored; 0 for none. beam_size: of the search that writes them.
    precision: "bf16" is autocast. strategy: how processes share the work under torchrun.
    """

    steps: int = 10_000
    minutes: float = 0.0
    batch_tokens: int = 4096
    accumulate: int = 1
    lr: float = 1e-3
    schedule: Schedule = "inverse-root"
    warmup: int = 1000
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    label_smoothing: float = 0.0
    clip: float = 1.0
    teacher_forcing: float = 1.0
    validate_every: int = 1000
    save_every: int = 1000
    log_every: int = 50
    samples: int = 500
    beam_size: int = 1
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    device: str = ""
    strategy: Literal["ddp", "fsdp"] = "ddp"


@dataclass(kw_only=True)
class Settings:
    """Everything about a run.

    out: the folder of the run. init_encoder: a folder with a trained BERT to start from.
    model: fields of the model's configuration.
    """

    task: TaskName
    arch: Arch
    out: str
    init_encoder: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


# What a run may be continued with other values of; all else changes what is learned.
FREE_TO_CHANGE = (
    "train.steps",
    "train.minutes",
    "train.validate_every",
    "train.save_every",
    "train.device",
    "train.strategy",
    "train.compile",
)

# What differs by task from the fields' own values.
_PRETRAINING = {"train.beta2": 0.999, "train.warmup": 1000, "train.schedule": "cosine"}
_FINE_TUNING = {
    "train.lr": 2e-4,
    "train.steps": 2000,
    "train.warmup": 200,
    "train.schedule": "linear",
    "train.beta2": 0.999,
    "train.validate_every": 250,
    "train.save_every": 250,
}
_OF_TASK: dict[str, dict[str, Any]] = {
    "translate": {"arch": "transformer", "train.label_smoothing": 0.1, "data.columns": [1, 2]},
    "summarize": {"arch": "transformer", "train.label_smoothing": 0.1, "data.columns": [1, 2]},
    "lm": {"arch": "gpt", **_PRETRAINING},
    "mlm": {"arch": "bert", "tokenizer.kind": "wordpiece", **_PRETRAINING},
    "classify": {
        "arch": "bert",
        "tokenizer.kind": "wordpiece",
        "tokenizer.lowercase": True,
        "data.columns": [1, 2],
        "data.valid_fraction": 0.1,
        **_FINE_TUNING,
    },
    "qa": {"arch": "bert", "tokenizer.kind": "wordpiece", **_FINE_TUNING},
}


def load_settings(
    task: str, file: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Settings of a task from a TOML file, whose values ``flags`` override.

    Args:
        task: its name.
        file: with keys ``arch``, ``out``, ``init_encoder`` and tables ``[data]``, ``[tokenizer]``,
            ``[model]``, ``[train]``.
        flags: values by dotted key, such as ``{"train.lr": 3e-4}``.

    Raises:
        ConfigError: the file is not there or no TOML, or a key is unknown or its value of another
            type; the message names file or flag and key.
    """
    if task not in get_args(TaskName):
        raise ConfigError(f"task should be one of {', '.join(get_args(TaskName))}, got {task!r}")
    values = {key: (value, "") for key, value in _OF_TASK[task].items()}
    if file is not None:
        values |= {key: (v, f"{file}: ") for key, v in _flatten(_read(Path(file))).items()}
    values |= {key: (value, "flag: ") for key, value in (flags or {}).items()}
    if "task" in values and values["task"][0] != task:
        value, source = values["task"]
        raise ConfigError(f"{source}task is {value!r}, but {task!r} was asked for")
    values["task"] = (task, "")
    values.setdefault("out", (f"runs/{task}-{values['arch'][0]}", ""))
    return _build(Settings, "", values)


def flatten(settings: Settings) -> dict[str, Any]:
    """Values by dotted key."""
    return _flatten(dataclasses.asdict(settings))


def parse_value(text: str) -> Any:
    """The value that a flag gives: as TOML if it is that, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def _build(kind: type, prefix: str, values: Mapping[str, tuple[Any, str]]) -> Any:
    """A dataclass from the values whose keys begin with ``prefix``."""
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    sections = {name for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    for name in sections:
        arguments[name] = _build(hints[name], f"{prefix}{name}.", values)
    for key, (value, source) in values.items():
        if not key.startswith(prefix):
            continue
        name, _, rest = key[len(prefix) :].partition(".")
        if rest and name in sections:
            continue
        if rest and hints.get(name) == dict[str, Any]:
            arguments.setdefault(name, {})[rest] = value  # the model's configuration checks it
            continue
        if name in sections:
            raise ConfigError(f"{source}{key} is a table, got {value!r}")
        if rest or name not in hints:
            known = [f"{prefix}{name}" for name in hints]
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there is: {', '.join(known)}"
            raise ConfigError(f"{source}unknown key {key!r}; {hint}")
        if not _fits(value, hints[name]):
            raise ConfigError(f"{source}{key} should be {_told(hints[name])}, got {value!r}")
        arguments[name] = value
    return kind(**arguments)


def _told(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return hint.__name__ if type(hint) is type else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
