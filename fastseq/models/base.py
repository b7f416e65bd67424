"""Models as directories: config.json and model.safetensors, written whole or not at all."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

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

        Args:
            device: where to put it; the CPU by default.
            dtype: of its parameters; as saved by default.
            changes: fields of the configuration to set otherwise, as dropout.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: a file is damaged, of another model, or has other weights than its
                configuration asks for.
        """
        directory = Path(directory)
        model_type, fields, weights = read(directory, device)
        if model_type != cls.model_type:
            raise CheckpointError(
                f"{directory / CONFIG_FILE}: a model of type {model_type!r}, not "
                f"{cls.model_type!r} as {cls.__name__} needs"
            )
        with torch.device("meta"):  # no memory, no random numbers
            model = cls(cls._configure(directory, {**fields, **changes}))
        model._take(weights, directory / WEIGHTS_FILE)
        return model.to(dtype=dtype).eval()

    @classmethod
    def _configure(cls, directory: Path, fields: Mapping[str, Any]) -> Config:
        try:
            check_names(cls.config_class, fields)
            return cls.config_class(**fields)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from None

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
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = new[id(parameter)]


def load(
    directory: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """The model in a directory, of whichever class its config.json names.

    Args and errors are those of ``Model.from_pretrained``.
    """
    model_type, _ = read_config(Path(directory))
    return _classes[model_type].from_pretrained(directory, device, dtype)


def read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """The model's type, one of ours, and the fields of its configuration."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, so {directory} holds no model")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    model_type = fields.pop("model_type", None) if isinstance(fields, dict) else None
    if model_type not in _classes:
        raise CheckpointError(
            f"{path}: unknown model_type {model_type!r}; known: {', '.join(sorted(_classes))}"
        )
    return model_type, fields


def read(
    directory: Path, device: torch.device | str | None = None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """``read_config`` and the weights by name."""
    model_type, fields = read_config(directory)
    return model_type, fields, read_weights(directory / WEIGHTS_FILE, device)


def read_weights(path: Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    safetensors = _safetensors()
    try:
        return safetensors.torch.load_file(path, str(device or "cpu"))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file: {error}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its place once it is written and on the disk.

    If the block raises, ``path`` stays as it was and the temporary file is removed.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "models are kept in safetensors files: pip install fastseq[models]"
        ) from None
    return safetensors


def at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
