"""Pictures of scores: of runs as they learn, and by the length of what was translated."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .alignment import new_figure

# Okabe and Ito's palette, told apart by every kind of colour vision.
_COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
_MARKS = "os^Dv*P"

Curve = tuple[list[float], list[float]]


def plot_scores(sources: Sequence[str | Path], score: str = "bleu") -> Any:
    """A line for each source.

    Args:
        sources: run folders, whose ``score`` in validation is drawn over the updates; or files that
            ``evaluate`` wrote, whose ``score`` is drawn over the words of a source.
        score: "bleu", "chrf", "accuracy", "loss" … as it is called there.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: no source, both kinds, or one without such scores. OSError: one is not there.
        ImportError: matplotlib is not there.
    """
    paths = [Path(source) for source in sources]
    runs = [path.is_dir() for path in paths]
    if not paths or any(runs) != all(runs):
        raise ValueError("sources should be run folders, or files of evaluations, but not both")
    figure = new_figure(figsize=(7.2, 4.2), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    ticks: list[str] = []
    for i, path in enumerate(paths):
        if runs[i]:
            x, y = _of_run(path, score)
        else:
            ticks, (x, y) = _by_length(path, score)
        colour, mark = _COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]
        label = path.name if runs[i] else path.stem
        axes.plot(x, y, color=colour, marker=mark, markersize=4.5, linewidth=1.8, label=label)
    axes.set_xlabel("updates" if runs[0] else "words of the source")
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
    axes.set_ylabel(score)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.legend(frameon=False)
    return figure


def _of_run(folder: Path, score: str) -> Curve:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for line in lines if (entry := json.loads(line))["kind"] == "valid"]
    return _checked(folder, score, [entry["step"] for entry in entries], entries)


def _by_length(file: Path, score: str) -> tuple[list[str], Curve]:
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))["by_length"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: no scores by length, as `fastseq evaluate` writes") from None
    names = [f"{part['from']}–{part['to'] or ''}" for part in parts]
    return names, _checked(file, score, list(range(len(parts))), parts)


def _checked(path: Path, score: str, places: list[Any], entries: list[dict[str, Any]]) -> Curve:
    found = [(x, entry[score]) for x, entry in zip(places, entries) if score in entry]
    if not found:
        there = sorted({name for entry in entries for name in entry})
        raise ValueError(f"{path}: no {score!r}; there is: {', '.join(there) or 'nothing yet'}")
    return [x for x, _ in found], [y for _, y in found]
