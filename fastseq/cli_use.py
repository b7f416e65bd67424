"""The commands that put trained models to work: ``fastseq translate``, ``generate`` …"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from .cli_errors import errors_told

if TYPE_CHECKING:
    from .use.lines import Line

Model = Annotated[
    Path,
    typer.Option(
        help="Folder of the model, or of the run whose best one it is.", show_default=False
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; default: the best there is.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts that are worked on together.")]
Truncate = Annotated[bool, typer.Option(help="Cut texts that are longer than the model reads.")]
Beam = Annotated[
    int | None,
    typer.Option(min=1, help="Width of the beam, for translations and summaries 4; 1 is greedy."),
]
LengthPenalty = Annotated[
    float, typer.Option(min=0.0, help="Of beam search: more makes longer texts.")
]
_Texts = Annotated[
    list[str] | None,
    typer.Argument(help="Texts; without any, the files' or standard input's lines."),
]
_Files = Annotated[
    list[Path] | None, typer.Option("--file", help="File of lines, may be repeated; - is stdin.")
]
_Output = Annotated[
    Path | None, typer.Option(help="File for the results, written whole or not at all.")
]
# Lines that are read before they are sorted into batches, for each text of a batch.
_AHEAD = 8


def best_device(device: str) -> str:
    """The device that was asked for, else a card if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _writer(kind: str, blank_between: bool, doc: str) -> Callable[..., None]:
    """A command of a task that writes, by the class of that name in ``fastseq.use``."""

    def command(
        model: Model,
        texts: _Texts = None,
        file: _Files = None,
        output: _Output = None,
        beam: Beam = None,
        sample: Annotated[
            bool | None,
            typer.Option("--sample/--no-sample", help="Draw words by their probability."),
        ] = None,
        temperature: Annotated[
            float | None, typer.Option(help="Of sampling: under 1 is safer, over 1 wilder.")
        ] = None,
        top_k: Annotated[
            int | None, typer.Option(help="Draw from so many best words; 0 is all.")
        ] = None,
        top_p: Annotated[
            float | None,
            typer.Option(help="Draw from the best words of this probability together."),
        ] = None,
        seed: Annotated[
            int | None, typer.Option(help="Of sampling; else no two are alike.")
        ] = None,
        length_penalty: LengthPenalty = 1.0,
        no_repeat_ngram: Annotated[
            int, typer.Option(min=0, help="So many words in a row never come twice.")
        ] = 0,
        n_best: Annotated[
            int,
            typer.Option(min=1, help="Over 1: lines of number, score and text, so many for each."),
        ] = 1,
        max_new_tokens: Annotated[
            int | None, typer.Option(min=1, help="The most that are written for one text.")
        ] = None,
        weights: Annotated[
            str, typer.Option(help="float32; bfloat16 and int8 are faster and not quite as exact.")
        ] = "float32",
        batch_size: BatchSize = 32,
        truncate: Truncate = False,
        device: Device = "",
    ) -> None:
        from . import use

        given = {
            "beam_size": beam,
            "sample": sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
        }
        options: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        where = best_device(device)
        draws = torch.Generator(where)
        draws.manual_seed(draws.seed() if seed is None else seed)
        options |= {
            "length_penalty": length_penalty,
            "no_repeat_ngram": no_repeat_ngram,
            "num_return": n_best,
            "generator": draws,
            "batch_size": batch_size,
            "truncate": truncate,
        }

        def show(number: int, found: list[use.Candidate]) -> str:
            if n_best > 1:
                return "".join(f"{number}\t{c.score:.4f}\t{_flat(c.text)}\n" for c in found)
            gap = "\n" if blank_between and number > 1 else ""
            return f"{gap}{found[0].text}\n"

        with errors_told(ValueError):
            task = getattr(use, kind).open(model, where, weights=weights)
            _run(
                task,
                lambda lines: task.candidates([line.text for line in lines], **options),
                show,
                lambda found: sum(candidate.tokens for candidate in found),
                _inputs(texts, file, batch_size),
                output,
            )

    command.__doc__ = doc
    return command


translate = _writer(
    "Translator",
    False,
    """Translate texts, line by line; an empty line stays empty.""",
)
summarize = _writer(
    "Summarizer",
    False,
    """Write a summary of each text, line by line; an empty line stays empty.""",
)
generate = _writer(
    "TextGenerator",
    True,
    """Go on with each text; with an empty one, begin one.

    Draws from the likeliest words, if no --beam is given. Between texts there is an empty line.
    """,
)


def classify(
    model: Model,
    texts: _Texts = None,
    file: _Files = None,
    output: _Output = None,
    batch_size: BatchSize = 32,
    truncate: Truncate = False,
    device: Device = "",
) -> None:
    """The class of each text and its probability, line by line; an empty line stays empty."""
    from . import use

    with errors_told(ValueError):
        classifier = use.Classifier.open(model, best_device(device))
        _run(
            classifier,
            lambda lines: classifier(
                [line.text for line in lines], batch_size=batch_size, truncate=truncate
            ),
            lambda _, found: f"{found.label}\t{found.probability:.4f}\n" if found.label else "\n",
            lambda found: found.tokens,
            _inputs(texts, file, batch_size),
            output,
        )


def answer(
    model: Model,
    questions: Annotated[
        list[str] | None,
        typer.Argument(help="Questions; without any, the files' or standard input's lines."),
    ] = None,
    context: Annotated[str, typer.Option(help="The text that has the answers.")] = "",
    context_file: Annotated[
        Path | None, typer.Option(help="A file with the text that has the answers.")
    ] = None,
    file: _Files = None,
    output: _Output = None,
    allow_none: Annotated[
        bool, typer.Option(help="No answer where none is likelier than every other.")
    ] = False,
    batch_size: BatchSize = 32,
    device: Device = "",
) -> None:
    """The answer to each question and its score, line by line; an empty line stays empty.

    Without --context and --context-file a line is a question, a tab, and the text with its answer.
    """
    from . import use
    from .data.files import read_lines

    with errors_told(ValueError):
        if context_file is not None:
            context = "\n".join(line for _, line in read_lines(context_file))
        answerer = use.QuestionAnswerer.open(model, best_device(device))

        def call(lines: "Sequence[Line]") -> list[use.Answer]:
            asked, contexts = [], []
            for line in lines:
                question, tab, own = line.text.partition("\t")
                if question.strip() and not (context or tab):
                    raise line.wrong(
                        "no tab and text after the question, and no --context or --context-file"
                    )
                asked.append(line.text if context else question)
                contexts.append(context or own)
            return answerer(asked, contexts, allow_none=allow_none, batch_size=batch_size)

        _run(
            answerer,
            call,
            lambda _, found: f"{_flat(found.text)}\t{found.score:.4f}\n" if found.tokens else "\n",
            lambda found: found.tokens,
            _inputs(questions, file, batch_size),
            output,
        )


def _flat(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(text.split())


def _inputs(
    texts: list[str] | None, files: list[Path] | None, batch_size: int
) -> "Iterator[list[Line]]":
    from .use.lines import pools

    if not texts and not files and sys.stdin.isatty():
        typer.echo("Type a text and press Enter; Ctrl-D ends.", err=True)
    return pools(texts or [], files or [], _AHEAD * batch_size)


def _run(
    task: Any,
    call: "Callable[[list[Line]], Sequence[Any]]",
    show: Callable[[int, Any], str],
    count: Callable[[Any], int],
    inputs: "Iterator[list[Line]]",
    output: Path | None,
) -> None:
    """Works through the inputs, writes results in their order, and tells the speed.

    Args:
        call: the result of each line. show: a result, with its number from 1, as it is written.
        count: tokens of a result.
    """
    from .use import TextError

    done = tokens = unknown = 0
    seconds, first_unknown = 0.0, ""
    with _written_to(output) as write:
        for lines in inputs:
            started = time.perf_counter()
            try:
                results = call(lines)
            except TextError as error:
                raise lines[error.index].wrong(error.reason) from None
            seconds += time.perf_counter() - started
            write("".join(show(done + i, result) for i, result in enumerate(results, 1)))
            done += len(lines)
            tokens += sum(map(count, results))
            strange = task.unknown([line.text for line in lines])
            if strange and not unknown:
                first_unknown = f"{lines[strange[0]].path}:{lines[strange[0]].number}"
            unknown += len(strange)
    if unknown:
        typer.echo(
            f"{_texts(unknown)} with characters that the tokenizer does not know, the first at "
            f"{first_unknown}",
            err=True,
        )
    speed = tokens / max(seconds, 1e-9)
    typer.echo(
        f"{_texts(done)}, {tokens:,} tokens in {seconds:.2f} s: {speed:,.0f} tokens/s", err=True
    )


def _texts(count: int) -> str:
    return f"{count:,} text{'s' * (count != 1)}"


@contextmanager
def _written_to(output: Path | None) -> Iterator[Callable[[str], object]]:
    """Where results go: a file, which is there when all are, or standard output, at once."""
    if output is None:
        yield lambda text: typer.echo(text, nl=False)
        return
    from ._replacing import replacing
    from .data.files import open_binary

    with replacing(output) as temporary, open_binary(temporary, "wb") as file:
        yield lambda text: file.write(text.encode())
