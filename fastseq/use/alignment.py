"""What a translation looked at while it was written, as numbers and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Tokenizer
from ..generation import generate
from ..models import CheckpointError, Seq2Seq
from .trained import TextError, check_texts
from .writing import Translator


@dataclass(frozen=True)
class Alignment:
    """A translation and where it comes from.

    Attributes:
        source, target: the tokens as readers know them; a word's later pieces begin with "·".
        weights: (target, source) float, the attention with which each token was chosen.
        text: the translation.
    """

    source: list[str]
    target: list[str]
    weights: Tensor
    text: str


def align(
    translator: Translator,
    text: str,
    translation: str | None = None,
    *,
    truncate: bool = False,
    **search: Any,
) -> Alignment:
    """The attention of a model with which it translates ``text``.

    Of a ``Transformer`` it is that of the last layer to the source, the mean over its heads.

    Args:
        translation: what to align; the model's own, found with ``search``, if None.
        truncate: cut ``text`` if it is longer than the model reads.

    Raises:
        CheckpointError: the model has no attention.
        TextError: there is no text, or it, as texts[0], or the translation is too long.
    """
    model, tokenizer = translator.model, translator.tokenizer
    if isinstance(model, Seq2Seq) and model.attention is None:
        raise CheckpointError(
            "the model has no attention: all of the source goes through one vector"
        )
    if translation is None:
        translation = translator([text], truncate=truncate, **search)[0]
    check_texts([text, translation])
    (source,) = translator._encode([text], truncate)
    target = tokenizer.encode(translation)
    if not source or not translation.strip():
        raise TextError(0, f"nothing to align: {text!r} and {translation!r}")
    if translator.max_length is not None and len(target) >= translator.max_length:
        raise TextError(
            1, f"{len(target)} tokens, the model writes at most {translator.max_length - 1}"
        )
    # The translation is given as a prefix, so that any search, or nobody's, may have found it.
    ((found,),) = generate(
        model,
        torch.tensor([source], device=translator.device),
        prefix=[target],
        max_new_tokens=1,
        need_attention=True,
    )
    assert found.attention is not None
    weights = found.attention[: len(target)].float().cpu()
    return Alignment(
        token_labels(tokenizer, source), token_labels(tokenizer, target), weights, translation
    )


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Tokens as readers know them; a word's later pieces begin with "·"."""
    pieces = [tokenizer.inner.id_to_token(i) for i in ids]
    marks = ("Ġ", "▁")  # a word's first piece, of byte-level BPE and of SentencePiece
    marked = any(piece.startswith(marks) for piece in pieces)
    labels = []
    for i, piece in zip(ids, pieces):
        if piece.startswith("##"):
            labels.append(f"·{piece[2:]}")
            continue
        text = tokenizer.inner.decode([i], skip_special_tokens=False).strip()
        later = marked and not piece.startswith(marks) and text[:1].isalnum()
        labels.append(f"·{text}" if later else text or "␣")
    return labels


def plot(alignment: Alignment) -> Any:
    """A heat map, the source from left to right and the translation downwards.

    Returns:
        A ``matplotlib.figure.Figure``: ``figure.savefig("alignment.png")``.

    Raises:
        ImportError: matplotlib is not there.
    """
    rows, columns = alignment.weights.shape
    # A cell is 0.36 inches wide and high; beside it stand labels, of about so much a letter.
    width = 1.1 + 0.36 * columns + 0.09 * max(map(len, alignment.target))
    height = 0.3 + 0.36 * rows + 0.09 * max(map(len, alignment.source))
    figure = new_figure(figsize=(width, height), dpi=144)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    axes = figure.add_subplot()
    image = axes.imshow(alignment.weights.numpy(), cmap="Blues", vmin=0, aspect="equal")
    # What users type is no formula, whatever dollar signs it has.
    axes.set_xticks(range(columns), alignment.source, rotation=60, ha="left", parse_math=False)
    axes.set_yticks(range(rows), alignment.target, parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.set_xticks([x - 0.5 for x in range(1, columns)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0, top=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 2.5 / height), pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label("attention", fontsize=8)
    return figure


def new_figure(**options: Any) -> Any:
    """A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: matplotlib is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "matplotlib is not installed: pip install matplotlib", name="matplotlib"
        ) from None
    return Figure(**options)
