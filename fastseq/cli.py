"""The command ``fastseq``."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from . import cli_show, cli_train, cli_use
from .config import show_config

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(cli_train.train)
app.command("translate")(cli_use.translate)
app.command("summarize")(cli_use.summarize)
app.command("generate")(cli_use.generate)
app.command()(cli_use.classify)
app.command()(cli_use.answer)
app.command()(cli_show.evaluate)
app.command()(cli_show.plot_attention)
app.command()(cli_show.plot_scores)
app.command()(cli_show.demo)
app.add_typer(cli_train.corpus, name="corpus")


@app.command()
def info() -> None:
    """Versions, CPU capability, GPU, and which backend serves which operator."""
    show_config()


@app.command()
def bench(
    suites: Annotated[list[str], typer.Argument(help="Suites to run: rnn, attention, models.")],
    out: Annotated[Path, typer.Option(help="Directory for JSON, report and pictures.")] = Path(
        "results"
    ),
    quick: Annotated[bool, typer.Option(help="A few cases, a rough look.")] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1 …; default: the best there is.")
    ] = "",
    filter: Annotated[str, typer.Option(help="Only cases whose group or name contains this.")] = "",
) -> None:
    """Check parity, then time against other libraries. Exit 1 when a case fails parity."""
    from fastseq.benchmarks import attention, models, rnn
    from fastseq.benchmarks.suite import succeeded

    known = {module.SUITE.name: module.SUITE for module in (rnn, attention, models)}
    if unknown := [name for name in suites if name not in known]:
        raise typer.BadParameter(f"unknown suite {unknown[0]!r}; there is: {', '.join(known)}")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        records = [known[name].run(out, where, quick, filter) for name in suites]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not all(succeeded(record) for record in records):
        raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
