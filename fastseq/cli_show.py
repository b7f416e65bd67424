"""The commands that show what a model does: ``evaluate``, ``plot-…``, ``demo``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_errors import errors_told
from .cli_use import BatchSize, Beam, Device, LengthPenalty, Model, Truncate, best_device


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option(help="File like those that the model was trained on.")],
    column: Annotated[
        list[int] | None,
        typer.Option(help="Column of a tab-separated file, from 1; two --column for pairs."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="For numeric labels: those below are negative.")
    ] = None,
    beam: Beam = None,
    length_penalty: LengthPenalty = 1.0,
    bucket: Annotated[
        list[int] | None,
        typer.Option(help="Most words of a source in a bucket of its own score; may be repeated."),
    ] = None,
    batch_size: BatchSize = 32,
    truncate: Truncate = False,
    device: Device = "",
    output: Annotated[Path | None, typer.Option(help="JSON file for the scores.")] = None,
) -> None:
    """Scores on a file: BLEU, chrF and ROUGE-L, also by length; accuracy; F1; or perplexity."""
    from rich.console import Console
    from rich.table import Table

    from . import use
    from ._replacing import replacing
    from .use.evaluation import BUCKETS

    search: dict[str, Any] = {} if beam is None else {"beam_size": beam}
    with errors_told(ValueError):
        scores = use.evaluate(
            model,
            data,
            columns=column,
            threshold=threshold,
            device=best_device(device),
            buckets=bucket or BUCKETS,
            batch_size=batch_size,
            truncate=truncate,
            length_penalty=length_penalty,
            **search,
        )
        if output is not None:
            with replacing(output) as temporary:
                temporary.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    parts = scores.pop("by_length", [])
    console = Console()
    console.print("  ".join(f"{name} {value:,.6g}" for name, value in scores.items()))
    if parts:
        table = Table("words", "count", "bleu", "chrf")
        for part in parts:
            words = f"{part['from']}–{part['to']}" if part["to"] else f"{part['from']}–"
            table.add_row(words, *(f"{part[name]:.4g}" for name in ("count", "bleu", "chrf")))
        console.print(table)


def plot_attention(
    model: Model,
    text: Annotated[str, typer.Argument(help="What to translate.")],
    out: Annotated[Path, typer.Option(help="Picture: .png, .svg, .pdf …")],
    translation: Annotated[
        str | None, typer.Option(help="What to align it with; default: the model's own.")
    ] = None,
    beam: Beam = None,
    truncate: Truncate = False,
    device: Device = "",
) -> None:
    """Draw what the model looks at while it translates, as a heat map."""
    from . import use
    from ._replacing import replacing

    search: dict[str, Any] = {} if beam is None else {"beam_size": beam}
    with errors_told(ValueError):
        translator = use.Translator.open(model, best_device(device))
        alignment = use.align(translator, text, translation, truncate=truncate, **search)
        with replacing(out) as temporary:
            use.plot(alignment).savefig(temporary)
    typer.echo(alignment.text)


def plot_scores(
    sources: Annotated[
        list[Path], typer.Argument(help="Run folders, or JSON files that evaluate wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Picture: .png, .svg, .pdf …")],
    score: Annotated[str, typer.Option(help="bleu, chrf, accuracy, loss …")] = "bleu",
) -> None:
    """Draw scores: of runs as they learn, or of evaluations by the length of the source."""
    from . import use
    from ._replacing import replacing

    with errors_told(ValueError), replacing(out) as temporary:
        use.plot_scores(sources, score).savefig(temporary)


def demo(
    model: Model,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of this machine, for the page.")] = (
        8080
    ),
    show: Annotated[bool, typer.Option(help="Open the page in a browser.")] = False,
    device: Device = "",
) -> None:
    """A page on this machine where one types a sentence and sees what the model makes of it.

    Translation, alignment and tokens/s. It is reached from this machine only, and needs no network.
    """
    from . import use

    with errors_told():
        from .use.page import serve

        serve(use.Translator.open(model, best_device(device)), str(model), port, show)
