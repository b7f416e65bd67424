"""Pictures of a run's speed-ups."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

# Okabe and Ito's palette, told apart by every kind of colour vision; losses are hatched besides.
GAIN, LOSS, INK, FAINT = "#0072B2", "#D55E00", "#222222", "#9a9a9a"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "ytick.color": INK,
    "xtick.color": "#555555",
}
PAGE = 41  # lines a column


def _title(record: dict) -> tuple[str, str]:
    machine = record["machine"]
    where = machine.get("card") or "{processor}, {threads} threads".format_map(
        {"processor": "a processor", "threads": "?", **machine}
    )
    mean = record["summary"].get("geometric_mean")
    # A run that could not ask the machine still has its figures.
    ours, torch = (str(machine.get(name, "")).split("+")[0] for name in ("fastseq", "torch"))
    title = f"{record['title']}: fastseq {ours} against torch {torch}"
    return title, f"{where}" + (f"  ·  geometric mean {mean:.2f}×" if mean else "")


def _log_axis(axes: Axes, values: list[float]) -> None:
    low, high = min([*values, 0.9]) / 1.15, max([*values, 2.0]) * 1.45
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200) if low < t < high]
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axvline(1, color=INK, linewidth=1.1, zorder=3)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.25)
    plt.close(figure)


def overview(record: dict, path: Path) -> None:
    """A bar a group (geometric mean) with a dot a case."""
    groups: dict[str, list[float]] = {}
    for entry in record["results"]:
        if entry["status"] == "ok" and entry["served_by"] == "fastseq":
            groups.setdefault(entry["group"], []).append(entry["speedup"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.4, 0.62 + 0.36 * len(groups)))
        means = record["summary"]["groups"]
        for y, (name, values) in enumerate(groups.items()):
            mean = means[name]
            _bar(axes, y, mean, height=0.62, alpha=0.35)
            axes.scatter(
                values,
                [y] * len(values),
                s=17,
                zorder=4,
                linewidth=0.5,
                edgecolor="white",
                color=[GAIN if v >= 1 else LOSS for v in values],
            )
            axes.text(
                max(max(values), mean, 1) * 1.07,
                y,
                f"{mean:.1f}×" if mean >= 1.95 else f"{mean:.2f}×",
                va="center",
                fontweight="bold",
            )
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.4, -0.6)
        _log_axis(axes, [v for values in groups.values() for v in values])
        title, subtitle = _title(record)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
        axes.text(
            0, 1, subtitle, transform=axes.transAxes, va="bottom", color="#555555", fontsize=8.5
        )
        axes.set_xlabel(
            "times faster (log scale): bar = geometric mean, dot = one case",
            fontsize=8.5,
            color="#555555",
        )
        _save(figure, path)


def _bar(axes: Axes, y: float, value: float, height: float, alpha: float = 1.0) -> None:
    gain = value >= 1
    axes.barh(
        y,
        value - 1,
        left=1,
        height=height,
        color=GAIN if gain else LOSS,
        alpha=alpha,
        zorder=2,
        hatch=None if gain else "////",
        edgecolor="white",
        linewidth=0,
    )


def cases(record: dict, path: Path) -> None:
    """A bar a case under its group's heading; losses and failures too."""
    groups: dict[str, list[dict]] = {}
    for entry in record["results"]:
        groups.setdefault(entry["group"], []).append(entry)
    values = [e["speedup"] for e in record["results"] if e["status"] == "ok"]
    pages: list[list[tuple[str, dict | None]]] = [[]]
    for group, entries in groups.items():
        if pages[-1] and len(pages[-1]) + len(entries) >= PAGE:
            pages.append([])
        pages[-1] += [(group, None), *((e["case"], e) for e in entries)]
    longest = max(map(len, pages))
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(
            1, len(pages), figsize=(7.2 * len(pages), 0.9 + 0.215 * longest), squeeze=False
        )
        for page, axes in zip(pages, all_axes[0]):
            _page(axes, page, longest, values)
        title, subtitle = _title(record)
        figure.tight_layout(w_pad=3)
        left = all_axes[0][0].get_position().x0
        figure.text(
            left,
            1 + 0.22 / figure.get_figheight(),
            title,
            fontsize=14,
            fontweight="bold",
            va="bottom",
        )
        figure.text(left, 1.0, subtitle, color="#555555", va="bottom")
        _save(figure, path)


def _page(
    axes: Axes, rows: list[tuple[str, dict | None]], length: int, values: list[float]
) -> None:
    labels = []
    for y, (text, entry) in enumerate(rows):
        labels.append(text if entry else "")
        if entry is None:
            axes.text(
                -0.01,
                y,
                text,
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                fontweight="bold",
            )
        elif entry["status"] == "ok" and entry["served_by"] == "torch":
            axes.text(1.04, y, "served by torch", va="center", fontsize=8, style="italic")
        elif entry["status"] == "ok":
            speedup = entry["speedup"]
            _bar(axes, y, speedup, height=0.72)
            text = f"{speedup:.2f}×"
            if "speedup_over_best" in entry:
                text += f" ({entry['speedup_over_best']:.2f}× over best)"
            axes.text(max(speedup, 1) * 1.04, y, text, va="center", fontsize=8)
        else:
            axes.text(1.04, y, entry["status"], va="center", fontsize=8, color=LOSS, style="italic")
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(length - 0.4, -0.7)
    _log_axis(axes, values)
