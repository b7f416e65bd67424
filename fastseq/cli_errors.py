"""How commands end when something is wrong that a user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_told(*more: type[Exception]) -> Iterator[None]:
    """Errors that a user can mend, and those in ``more``, end the command with their message."""
    from .data import AptError, DataError
    from .models import CheckpointError
    from .training import ConfigError, DivergedError

    mendable: tuple[type[Exception], ...] = (
        *(AptError, CheckpointError, ConfigError, DataError, DivergedError),
        *(OSError, ImportError),
        *more,
    )
    try:
        yield
    except BrokenPipeError:  # who reads has had enough, as `head`
        raise
    except mendable as error:
        typer.echo(f"fastseq: {error}", err=True)
        raise typer.Exit(1) from None
