"""What a run says: lines or a bar on the screen, log.jsonl, and TensorBoard's scalars."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .._replacing import replacing
from .checkpoint import SaveError

LOG_FILE = "log.jsonl"
_WIDTH = 200  # of a sample's line on the screen


class Report:
    """The log of a run in ``out``, from update ``step`` on; what stood after it is dropped.

    Args:
        steps, minutes: where the run ends, 0 minutes for no time budget.
    """

    def __init__(self, out: Path, console: Console, step: int, steps: int, minutes: float) -> None:
        self.console, self.steps, self.minutes = console, steps, minutes
        self.first, self.started = step, time.monotonic()
        path = out / LOG_FILE
        if path.exists():
            lines = path.read_text("utf-8").split("\n")
            kept = [line for line in lines if _step(line) <= step]
            with replacing(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.log = path.open("a", encoding="utf-8", buffering=1)  # a line is written when it ends
        self.board = self._tensorboard(out / "tensorboard", step)
        self.bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, completed=step)
        self.bar.start()

    def _tensorboard(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.console.print("no TensorBoard log: pip install tensorboard")
            return None
        return SummaryWriter(str(folder), purge_step=step + 1)

    def training(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Mean losses and speed since the last call; ``seconds`` of the whole run."""
        self._record("train", step, values)
        rate = (step - self.first) / max(1e-9, time.monotonic() - self.started)
        left = (self.steps - step) / max(1e-9, rate)
        if self.minutes:
            left = min(left, max(0.0, 60 * self.minutes - seconds))
        text = f"{_told(values)}  {_clock(left)} left".replace("_per_second", "/s")
        self.bar.update(self.task, completed=step, description=text)
        if not self.console.is_terminal:
            self.say(f"step {step}/{self.steps}  {text}")

    def validation(self, step: int, values: dict[str, float], samples: list[str]) -> None:
        """Scores, and samples of what the model writes."""
        self._record("valid", step, values, samples)
        self.say(f"[bold]valid {step}[/bold]  {_told(values)}")
        for sample in samples:
            # The log has all; an untrained model may repeat itself to the end.
            seen = "\n".join(
                line[:_WIDTH] + "…" * (len(line) > _WIDTH) for line in sample.split("\n")
            )
            self.console.print(f"  {seen}", markup=False, highlight=False, soft_wrap=True)
            if self.board is not None:
                self.board.add_text("sample", sample, step)

    def say(self, text: str) -> None:
        """A line on the screen."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _record(
        self, kind: str, step: int, values: dict[str, float], samples: list[str] | None = None
    ) -> None:
        entry: dict[str, Any] = {"kind": kind, "step": step, **values}
        if samples:
            entry["samples"] = samples
        try:
            self.log.write(json.dumps(entry, ensure_ascii=False) + "\n")
            if self.board is not None:
                for name, value in values.items():
                    self.board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise SaveError(f"{self.log.name}: the log cannot be written: {error}") from None

    def close(self) -> None:
        """Ends the bar and the files."""
        self.bar.stop()
        self.log.close()
        if self.board is not None:
            self.board.close()


def _step(line: str) -> float:
    """The update a line of the log is about; one that was cut short is about none to be kept."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def _told(values: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.4g}"
        for name, value in values.items()
    )


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
