"""Training of fastseq's models: settings, tasks, the loop, checkpoints."""

from .checkpoint import Checkpoints, SaveError
from .config import ConfigError, Settings, load_settings
from .loop import DivergedError, Trainer, train
from .tasks import TASKS

__all__ = [
    "TASKS",
    "Checkpoints",
    "ConfigError",
    "DivergedError",
    "SaveError",
    "Settings",
    "Trainer",
    "load_settings",
    "train",
]
