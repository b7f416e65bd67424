"""What the general method does not guess: options of configurations, classes, inputs."""

from typing import Any

#: Options over the tiny ones.
OPTIONS: dict[str, dict[str, Any]] = {}

#: The class to try first.
CLASSES: dict[str, str] = {}
