"""The commands ``fastseq train`` and ``fastseq corpus``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_errors import errors_told

corpus = typer.Typer(
    help="Sentence pairs out of what a machine has: OUT/train.tsv.xz and OUT/valid.tsv.xz.",
    no_args_is_help=True,
)
_Language = Annotated[str, typer.Option(help="The other language's code, as in folders' names.")]
_Out = Annotated[Path, typer.Option(help="Folder for the two files.")]
_Fraction = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Part of the English texts kept for validation.")
]


def train(
    task: Annotated[str, typer.Argument(help="translate, lm, mlm, classify, qa or summarize.")],
    config: Annotated[Path | None, typer.Option(help="TOML file; flags go over it.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Training file, may be repeated; for lm and mlm FILE:COLUMN is a column of one. "
            "translate has a sample of its own."
        ),
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option(help="Validation file; without one a part of the data is held out."),
    ] = None,
    column: Annotated[
        list[int] | None,
        typer.Option(help="Column of a tab-separated file, from 1; two --column for pairs."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the run; one that is there is continued.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="rnn, lstm, gru, the same with -attention, transformer; lm: gpt; others: bert."
        ),
    ] = None,
    init_encoder: Annotated[
        str | None, typer.Option(help="Folder of a trained BERT to start from.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget, validation included.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of an update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial values, order and dropout.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast).")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: the best there is.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, as model.hidden_size=512; may be repeated."),
    ] = None,
) -> None:
    """Train a model; the same command again goes on where it stopped.

    Under torchrun the processes share the work: torchrun --nproc-per-node 8 -m fastseq.cli train …
    """
    from .training import ConfigError, load_settings
    from .training import train as run
    from .training.config import parse_value

    given: dict[str, Any] = {
        "data.train": data,
        "data.valid": valid,
        "data.columns": column,
        "out": out,
        "arch": arch,
        "init_encoder": init_encoder,
        "train.steps": steps,
        "train.minutes": minutes,
        "train.batch_tokens": batch_tokens,
        "train.lr": lr,
        "train.seed": seed,
        "train.precision": precision,
        "train.device": device,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    with errors_told():
        for setting in set_ or []:
            key, sign, value = setting.partition("=")
            if not sign:
                raise ConfigError(f"--set should be KEY=VALUE, got {setting!r}")
            flags[key.strip()] = parse_value(value.strip())
        run(load_settings(task, config, flags))


@corpus.command("gettext")
def corpus_gettext(
    roots: Annotated[
        list[Path], typer.Argument(help="Folders to search for .mo files, as /usr/share/locale.")
    ],
    out: _Out,
    language: _Language = "fr",
    valid_fraction: _Fraction = 0.02,
) -> None:
    """Messages of installed programs and their translations, from gettext's catalogs."""
    from .data import DataError, find_catalogs, harvest_catalogs

    with errors_told():
        catalogs = find_catalogs(roots, language)
        if not catalogs:
            raise DataError(
                ", ".join(map(str, roots)), None, f"no .mo file below a folder {language!r}"
            )
        pairs, errors = harvest_catalogs(catalogs)
        typer.echo(f"{len(catalogs)} catalogs")
        for error in errors:
            typer.echo(f"left out: {error}", err=True)
        _write(pairs, out, valid_fraction)


@corpus.command("debian")
def corpus_debian(
    out: _Out,
    language: _Language = "fr",
    valid_fraction: _Fraction = 0.02,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of apt's lists, where it is not apt's own.")
    ] = None,
) -> None:
    """Descriptions of Debian's packages and their translations, from apt's lists."""
    from .data import harvest_debian

    with errors_told():
        options = () if lists is None else (f"Dir::State::lists={lists.resolve()}",)
        _write(harvest_debian(language, options), out, valid_fraction)


def _write(pairs: list[tuple[str, str]], out: Path, valid_fraction: float) -> None:
    from .data import clean_pairs, split_pairs, write_pairs

    split = split_pairs(clean_pairs(pairs), valid_fraction)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in split._asdict().items():
        path = out / f"{name}.tsv.xz"
        write_pairs(part, path)
        typer.echo(f"{path}: {len(part):,} pairs")
