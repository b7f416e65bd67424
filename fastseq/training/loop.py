"""The training loop: updates, validation, checkpoints, and going on where a run was broken off.

Nothing random is carried from one update to the next: the order of an epoch's batches follows from
(seed, epoch), and what is drawn within an update, as by dropout, from (seed, update, process). A
run that is killed therefore goes on to the same numbers from its last checkpoint.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.distributed.fsdp import FSDPModule

from .._replacing import replacing
from ..data import Tokenizer
from ..data.batching import mix
from ..models import Model, load
from .checkpoint import Checkpoints, read_shards, read_state, write_shards, write_state
from .config import FREE_TO_CHANGE, ConfigError, Settings, flatten
from .distributed import Ranks, shared, synchronize_gradients, whole_state
from .progress import Report
from .schedules import learning_rate_factor
from .tasks import TASKS

# How often processes agree on whether to stop.
_LOOK_AROUND = 5


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Position:
    """Where a run is: updates done, epoch, batches of it done, seconds spent, the best score."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best: float | None = None


def train(settings: Settings, console: Console | None = None) -> dict[str, float]:
    """Trains as the settings say, going on from the last checkpoint in ``settings.out`` if there is
    one.

    Under torchrun every process calls it; the first one writes and speaks.

    Returns:
        The scores of the last validation.

    Raises:
        ConfigError, DataError: before training starts. SaveError: a checkpoint cannot be written.
        DivergedError: the loss is no longer a number.
    """
    ranks = Ranks.start(settings.train.device)
    try:
        return Trainer(settings, ranks, console or Console()).run()
    finally:
        ranks.stop()


class Trainer:
    """A run: its task, model and optimizer, and where it is."""

    def __init__(self, settings: Settings, ranks: Ranks, console: Console) -> None:
        self.settings, self.ranks, self.console = settings, ranks, console
        self.out = Path(settings.out)
        self.checkpoints = Checkpoints(self.out)
        self.task = TASKS[settings.task](settings)
        last = self.checkpoints.last
        state = None if last is None else read_state(last)
        if state is not None:
            self._check_same(state["settings"])
        self.task.load(self._tokenizer(last))
        self.at = Position(**state["position"]) if state else Position()

        torch.manual_seed(mix(settings.train.seed))
        self.plain = self._model(last if state else None)
        if settings.train.compile:
            self.plain.compile(dynamic=True)
        self.module = shared(self.plain, ranks, settings.train.strategy)
        self.sharded = settings.train.strategy == "fsdp"
        self.optimizer = self._optimizer()
        # Since the last line of the log: sums of the losses, and their counts; last, of tokens.
        self.window = torch.zeros(2, len(self.task.terms) + 1, dtype=torch.float64)
        if state is not None and last is not None:
            self.window = state["window"]
            if self.sharded:
                read_shards(last, self.plain, self.optimizer)
            else:
                self.optimizer.load_state_dict(state["optimizer"])
        self.window = self.window.to(ranks.device)
        self.scores: dict[str, float] = {}

    def _check_same(self, before: dict[str, Any]) -> None:
        now = flatten(self.settings)
        for key in sorted(before.keys() | now.keys()):
            if key not in (*FREE_TO_CHANGE, "out") and before.get(key) != now.get(key):
                raise ConfigError(
                    f"{self.out} holds a run with {key} = {before.get(key)!r}, now it is "
                    f"{now.get(key)!r}: choose another folder (--out) to begin anew"
                )

    def _tokenizer(self, last: Path | None) -> Tokenizer:
        """That of the checkpoint, else the one asked for, else a new one, by the first process."""
        path, wanted = self.out / "tokenizer.json", self.settings.tokenizer
        if last is not None:
            return Tokenizer.load(last)
        if self.ranks.main:
            self.out.mkdir(parents=True, exist_ok=True)
            given = wanted.path or self.settings.init_encoder
            if given:
                tokenizer = Tokenizer.load(given)
            else:
                self.console.print(f"learning a vocabulary of {wanted.vocab_size:,} tokens …")
                tokenizer = Tokenizer.train(
                    self.task.texts(), wanted.vocab_size, wanted.kind, wanted.lowercase
                )
            tokenizer.save(path)
        self.ranks.wait()
        return Tokenizer.load(path)

    def _model(self, last: Path | None) -> Model:
        model = self.task.build() if last is None else load(last)
        return model.to(self.ranks.device).train()

    def _optimizer(self) -> torch.optim.AdamW:
        """AdamW (arXiv 1711.05101), which decays matrices and embeddings, not biases and gains."""
        settings = self.settings.train
        parameters = list(self.plain.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def run(self) -> dict[str, float]:
        """Trains to the end; see ``train``."""
        settings = self.settings.train
        self.report = None
        if self.ranks.main:
            self.report = Report(
                self.out, self.console, self.at.step, settings.steps, settings.minutes
            )
            self._introduce(self.report)
        self.logged, self.spent_before = time.monotonic(), self.at.seconds
        self.began = self.logged
        try:
            with _deferred_signals() as signals:
                self._epochs(signals)
        finally:
            if self.report is not None:
                self.report.close()
        return self.scores

    def _introduce(self, report: Report) -> None:
        settings, task = self.settings, self.task
        size = sum(p.numel() for p in self.plain.parameters())
        report.say(
            f"[bold]{settings.task}[/bold]: {type(self.plain).__name__} ({settings.arch}), "
            f"{size / 1e6:.1f} M parameters, {settings.train.precision} on "
            f"{self.ranks.world} × {self.ranks.device}; {len(task.train):,} examples, "
            f"{len(task.valid):,} for validation; writes to {self.out}"
        )
        for note in task.notes:
            report.say(note)
        if self.at.step:
            report.say(f"going on after update {self.at.step}")

    def _epochs(self, signals: list[int]) -> None:
        settings = self.settings.train
        if self._finished():
            self._say("the run is at its end: more --steps or --minutes go on with it")
            return
        while True:
            shuffle = (settings.seed, self.at.epoch)
            plan = self.task.train.batches(settings.batch_tokens, shuffle)
            for indices in plan[self.at.batch :]:
                self.update(indices, shuffle)
                if self._after_update(signals):
                    return
            self.at.epoch, self.at.batch = self.at.epoch + 1, 0

    def update(self, indices: list[int], shuffle: tuple[int, int]) -> None:
        """One update, from this process's share of a batch.

        The batch is dealt out to the processes and the parts of an update, and every loss divided
        by its count in the whole batch, so that neither number changes what is learned.
        """
        settings, ranks, at = self.settings.train, self.ranks, self.at
        torch.manual_seed(mix(settings.seed, at.step, ranks.rank))
        shares = ranks.world * settings.accumulate
        parts = [indices[i::shares] for i in range(ranks.rank, shares, ranks.world)]
        # A share without examples computes one that counts nothing: processes go in step.
        used = [bool(part) for part in parts]
        batches = [
            self.task.train.collate(part or indices[:1], shuffle).to(ranks.device) for part in parts
        ]
        window = torch.zeros_like(self.window)
        sums, counts = window[:, :-1]
        for batch, counted in zip(batches, used):
            if counted:
                counts += self.task.counts(batch).to(counts)
                window[1, -1] += batch.tokens
        ranks.sum(window[1])

        rate = settings.lr * learning_rate_factor(
            settings.schedule, at.step + 1, settings.warmup, settings.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for i, (batch, counted) in enumerate(zip(batches, used)):
            synchronize_gradients(self.module, i == len(batches) - 1)
            with self._autocast():
                outputs = self.module(**batch.inputs)
            losses = self.task.losses(outputs, batch, settings.label_smoothing)
            mean = (losses / counts.clamp(min=1).to(losses)).sum()
            # Gradients are averaged over the processes, but the means are over all their tokens.
            (mean * (ranks.world if counted else 0)).backward()
            if counted:
                sums += losses.detach().to(sums)
        ranks.sum(window[0])
        self.window += window
        limit = settings.clip or torch.inf
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), limit)
        self.optimizer.step()

        at.step, at.batch = at.step + 1, at.batch + 1

    def _after_update(self, signals: list[int]) -> bool:
        """Logs, validates and saves where it is time to; whether the run is to stop."""
        at, settings, ranks = self.at, self.settings.train, self.ranks
        at.seconds = self.spent_before + time.monotonic() - self.began
        if at.step % settings.log_every == 0:
            self._log()
        stop = False
        if ranks.world == 1 or at.step % _LOOK_AROUND == 0 or at.step >= settings.steps:
            stop = ranks.any(self._finished())
            if ranks.any(bool(signals)):
                self._save(best=False)
                self._say(f"stopped after update {at.step}; the same command goes on")
                return True
        better = False
        validate = at.step % settings.validate_every == 0 or stop
        if validate:
            better = self.validate()
        if validate or at.step % settings.save_every == 0:
            self._save(better)
        return stop

    def _finished(self) -> bool:
        settings = self.settings.train
        over = 0 < 60 * settings.minutes <= self.at.seconds
        return over or self.at.step >= settings.steps

    def _log(self) -> None:
        now, step = time.monotonic(), self.at.step
        sums, counts = self.window.tolist()
        self.window.zero_()
        tokens = counts.pop()
        means = dict(zip(self.task.terms, (s / max(1, c) for s, c in zip(sums, counts))))
        if not all(map(math.isfinite, means.values())):
            raise DivergedError(
                f"the loss is {means} at update {step}: try a lower train.lr or a longer "
                f"train.warmup; {self.checkpoints.last or 'no checkpoint'} is whole"
            )
        if self.report is not None:
            rate = {"lr": self.optimizer.param_groups[0]["lr"]}
            speed = {"tokens_per_second": tokens / max(1e-9, now - self.logged)}
            self.report.training(step, {**means, **rate, **speed}, self.at.seconds)
        self.logged = now

    @torch.no_grad()
    def validate(self) -> bool:
        """Scores the model on the validation examples; whether it is the best so far."""
        settings, ranks, task = self.settings.train, self.ranks, self.task
        started, model = time.monotonic(), self._whole_model().eval()
        sums = torch.zeros(2, len(task.terms), dtype=torch.float64, device=ranks.device)
        observed: list[Any] = []
        for indices in task.valid.batches(settings.batch_tokens, None)[ranks.rank :: ranks.world]:
            batch = task.valid.collate(indices, None).to(ranks.device)
            with self._autocast():
                outputs = model(**batch.inputs)
            sums[0] += task.losses(outputs, batch).to(sums)
            sums[1] += task.counts(batch).to(sums)
            observed += task.observe(outputs, batch)
        loss, count = ranks.sum(sums)
        losses = dict(zip(task.terms, (loss / count.clamp(min=1)).tolist()))
        written = task.write(model, ranks.rank, ranks.world)
        scores = task.scores(losses, ranks.gather(observed))
        judged, samples = task.judge(ranks.gather(written))
        self.scores = {**scores, **judged}
        self.plain.train()
        if self.report is not None:
            self.report.validation(self.at.step, self.scores, samples)
        self.logged += time.monotonic() - started  # speed is that of training

        name, sign = task.criterion
        score = sign * self.scores[name]
        better = self.at.best is None or score > self.at.best
        self.at.best = score if better else self.at.best
        return better

    def _whole_model(self) -> Model:
        """The model with all parameters in this process: itself, or a gathered copy."""
        if not isinstance(self.plain, FSDPModule):
            return self.plain
        model = self.task.build()
        model.load_state_dict(whole_state(self.plain))
        return model.to(self.ranks.device)

    def _save(self, best: bool) -> None:
        """Writes a checkpoint; all processes wait for it."""
        whole = self._whole_model()
        with self.checkpoints.saving(self.at.step, best, self.ranks) as folder:
            if self.sharded:
                write_shards(folder, self.plain, self.optimizer)
            if self.ranks.main:
                self._write(folder, whole)

    def _write(self, folder: Path, model: Model) -> None:
        model.save_pretrained(folder)
        self.task.tokenizer.save(folder)
        for name, text in self.task.extra_files().items():
            with replacing(folder / name) as path:
                path.write_text(text, encoding="utf-8")
        state: dict[str, Any] = {
            "position": asdict(self.at),
            "settings": flatten(self.settings),
            "window": self.window,
        }
        if not self.sharded:
            state["optimizer"] = self.optimizer.state_dict()
        write_state(folder, state)

    def _autocast(self) -> torch.autocast:
        wanted = self.settings.train.precision == "bf16"
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=wanted)

    def _say(self, text: str) -> None:
        if self.report is not None:
            self.report.say(text)


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collects interrupts (Ctrl-C, SIGTERM), so that they end the run between two updates. A second
    Ctrl-C ends it at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
