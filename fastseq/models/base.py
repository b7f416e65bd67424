"""Models as directories: config.json and model.safetensors, written whole or not at all."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .._replacing import replacing
from .config import Config, check_names

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_classes: dict[str, type["Model"]] = {}
Self = TypeVar("Self", bound="Model")


class CheckpointError(ValueError):
    """A file of a model is damaged, of another model, or does not fit its configuration."""


class Model(torch.nn.Module):
    """A network that is built from a configuration, saved to a directory and loaded from it.

    A subclass names its configuration's class and its ``model_type`` in config.json.
    """

    config_class: ClassVar[type[Config]]
    model_type: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "model_type" in vars(cls):
            _classes[cls.model_type] = cls

    def __init__(self, config: Config) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"config should be a {self.config_class.__name__}, got {type(config).__name__}"
            )
        self.config: Any = config

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes config.json and model.safetensors; tied parameters once.

        Each is written under another name, and renamed when it is complete on the disk.

        Raises:
            OSError: as when the disk is full; what was there before stays.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        safetensors = _safetensors()
        with replacing(directory / WEIGHTS_FILE) as path:
            try:
                safetensors.torch.save_file(tensors, path, {"format": "pt"})
            except safetensors.SafetensorError as error:
                raise OSError(f"{directory / WEIGHTS_FILE}: not written: {error}") from None
        fields = {"model_type": self.model_type, **dataclasses.asdict(self.config)}
        with replacing(directory / CONFIG_FILE) as path:
            path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls: type[Self],
        directory: str | os.PathLike,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> Self:
        """The model that ``save_pretrained`` wrote, in evaluation mode.

        Hugging Face's directories of BERT, GPT-2 and Marian are read, too.

        Args:
            device: where to put it; the CPU by default.
            dtype: of its parameters; as saved by default.
            changes: fields of the configuration to set otherwise, as dropout.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: a file is damaged, of another model, or has other weights than its
                configuration asks for.
        """
        return cls._build(read(directory, device), dtype, **changes)

    @classmethod
    def _build(
        cls: type[Self], found: "Checkpoint", dtype: torch.dtype | None, **changes: Any
    ) -> Self:
        if found.model_type != cls.model_type:
            raise CheckpointError(
                f"{found.config_path}: a model of type {found.model_type!r}, not "
                f"{cls.model_type!r} as {cls.__name__} needs"
            )
        with torch.device("meta"):  # no memory, no random numbers
            model = cls(cls._configure(found, changes))
        model._take(found.weights, found.weights_path)
        return model.to(dtype=dtype).eval()

    @classmethod
    def _configure(cls, found: "Checkpoint", changes: Mapping[str, Any]) -> Config:
        try:
            check_names(cls.config_class, found.fields)
            config = cls.config_class(**found.fields)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{found.config_path}: {error}") from None
        return config.replace(**changes)

    def _take(self, weights: dict[str, Tensor], path: Path) -> None:
        """Puts the weights of a file in place of the parameters; ties stay."""
        own = dict(self.named_parameters())
        for problem, names in (
            ("lacks", own.keys() - weights.keys()),
            ("has unexpected", weights.keys() - own.keys()),
        ):
            if names:
                raise CheckpointError(f"{path} {problem} weights: {', '.join(sorted(names))}")
        for name, parameter in own.items():
            if parameter.shape != weights[name].shape:
                raise CheckpointError(
                    f"{path}: {name} should have shape {tuple(parameter.shape)}, got "
                    f"{tuple(weights[name].shape)}"
                )
        new = {id(p): torch.nn.Parameter(weights[name]) for name, p in own.items()}
        for module in self.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    module._parameters[name] = new[id(old)]


def load(
    directory: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **changes: Any,
) -> Model:
    """The model in a directory, of whichever class its config.json names.

    Args and errors are those of ``Model.from_pretrained``.
    """
    found = read(directory, device)
    return _classes[found.model_type]._build(found, dtype, **changes)


@dataclasses.dataclass
class Checkpoint:
    """What a model's directory holds: its type, the fields of its configuration, its weights."""

    directory: Path
    model_type: str
    fields: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def config_path(self) -> Path:
        return self.directory / CONFIG_FILE

    @property
    def weights_path(self) -> Path:
        return self.directory / WEIGHTS_FILE


def read(directory: str | os.PathLike, device: torch.device | str | None = None) -> Checkpoint:
    """Reads a directory of ours, or one of Hugging Face's that ``huggingface`` knows."""
    from . import huggingface

    directory = Path(directory)
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, so {directory} holds no model")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    model_type = fields.pop("model_type", None)
    known = {**_classes, **huggingface.CONVERTERS}
    if model_type not in known:
        raise CheckpointError(
            f"{path}: unknown model_type {model_type!r}; known: {', '.join(sorted(known))}"
        )
    weights = read_weights(directory / WEIGHTS_FILE, device)
    found = Checkpoint(directory, model_type, fields, weights)
    return found if model_type in _classes else huggingface.convert(found)


def read_weights(path: Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    if not path.is_file():
        pickles = sorted(file.name for file in path.parent.glob("*.bin"))
        note = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        raise FileNotFoundError(f"{path}: there is no such file{note}")
    safetensors = _safetensors()
    try:
        weights = safetensors.torch.load_file(path, str(device or "cpu"))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file: {error}") from None
    # The file's tensors begin anywhere, torch's own with a cache line. MKL rounds by that, and a
    # run that goes on must not differ from one that was never stopped.
    return {name: x.clone() if x.data_ptr() % 64 else x for name, x in weights.items()}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("models are kept in safetensors files: pip install safetensors") from None
    return safetensors


def at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
