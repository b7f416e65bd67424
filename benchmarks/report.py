"""What a run leaves behind: lines while it runs, a table, JSON, Markdown and pictures."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:  # plain text then
    Console = None  # type: ignore[assignment,misc]

Entry = dict
Record = dict


def line(entry: Entry) -> str:
    """One case in a line."""
    if entry["status"] == "ok":
        return f"{entry['speedup']:6.2f}×  {entry['case']}"
    reason = f" ({_brief(entry['reason'])})" if "reason" in entry else ""
    return f"{entry['status']:>7}  {entry['case']}{reason}"


def _brief(reason: str) -> str:
    """A reason in one line, that a table's cell can hold; compilers' run to pages."""
    text = " ".join(reason.split()).replace("|", "¦")
    return text if len(text) <= 200 else text[:199] + "…"


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call after each case with its line."""
    if Console is None:
        done = 0

        def plain(text: str) -> None:
            nonlocal done
            done += 1
            print(f"[{done}/{total}] {text}", flush=True)

        yield plain
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(highlight=False)) as bar:
        task = bar.add_task(title, total=total)

        def advance(text: str) -> None:
            bar.console.print(text, markup=False)
            bar.advance(task)

        yield advance


def write(record: Record, out: Path) -> None:
    """Print the table; write ``<suite>.json``, ``<suite>.md`` and, with matplotlib, two pictures;
    and REPORT.md, the summary of all suites whose records lie there.
    """
    write_json(record, out)
    show(record)
    pictures = overview(record, out) and every_case(record, out)
    replace(out / f"{record['suite']}.md", markdown(record, pictures))
    replace(out / "REPORT.md", index(out))
    print(f"written: {out}")


def write_json(record: Record, out: Path) -> None:
    """``<suite>.json``."""
    out.mkdir(parents=True, exist_ok=True)
    replace(out / f"{record['suite']}.json", json.dumps(record, indent=1, default=str) + "\n")


def overview(record: Record, out: Path) -> bool:
    """``<suite>-overview.png``, a bar a group. False where there is nothing to draw, or to draw
    with.
    """
    return _drawn("overview", record, out / f"{record['suite']}-overview.png")


def every_case(record: Record, out: Path) -> bool:
    """``<suite>.png``, a bar a case; as ``overview``."""
    return _drawn("cases", record, out / f"{record['suite']}.png")


def _drawn(picture: str, record: Record, path: Path) -> bool:
    if "geometric_mean" not in record["summary"]:
        return False
    try:
        from . import plot
    except ImportError:
        print("matplotlib is not installed: no pictures")
        return False
    getattr(plot, picture)(record, path)
    return True


def replace(path: Path, text: str) -> None:
    """Write a whole file or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)


# ---- table --------------------------------------------------------------------------------------

OVER_BEST = "over torch's best"
COLUMNS = (
    "case",
    "fastseq ms",
    "theirs ms",
    "speed-up",
    OVER_BEST,  # only where other implementations of torch's were timed too
    "GFLOP/s",
    "% of GEMM",
    "GB/s",
    "% of read",
    "memory",
    "error",
)


def columns(record: Record) -> list[str]:
    over_best = any("speedup_over_best" in entry for entry in record["results"])
    return [name for name in COLUMNS if over_best or name != OVER_BEST]


def row(entry: Entry, columns: Sequence[str]) -> list[str]:
    """The entry's cells of these columns."""
    if entry["status"] != "ok":
        reason = _brief(entry.get("reason", ""))
        if entry["status"] == "failed parity":
            p = entry["parity"]
            reason = f"{p['result']}: error {p['ours']:.1e}, limit {p['limit']:.1e}"
        return [f"{entry['case']}: {entry['status']} ({reason})", *[""] * (len(columns) - 1)]
    times, peaks = entry["milliseconds"], entry["peak_bytes"]
    name = entry["case"] + (" (served by torch)" if entry["served_by"] == "torch" else "")
    other = next(name for name in times if name != "fastseq")
    memory = f"{peaks['fastseq'] / peaks[other]:.2f}×" if peaks[other] else ""
    over_best = ""
    if "speedup_over_best" in entry:
        best = "" if entry["best_peer"] == other else f" ({entry['best_peer']})"
        over_best = f"{entry['speedup_over_best']:.2f}×{best}"
    parity = entry["parity"]
    cells = (
        name,
        _milliseconds(times["fastseq"]["median"]),
        f"{_milliseconds(times[other]['median'])}{' (loop)' if other == 'loop' else ''}",
        f"{'~' if entry['noisy'] else ''}{entry['speedup']:.2f}×",
        over_best,
        f"{entry['gflops']:.1f}",
        f"{entry['floor_percent']:.0f}",
        f"{entry['gb_s']:.1f}",
        f"{entry['read_percent']:.0f}",
        memory,
        f"{parity['ours']:.0e} / {parity['theirs']:.0e}",
    )
    return [cell for name, cell in zip(COLUMNS, cells) if name in columns]


def _milliseconds(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def summary_lines(record: Record) -> list[str]:
    summary = record["summary"]
    lines = [
        f"{summary['ok']} of {summary['cases']} cases measured, {summary['failed parity']} failed "
        f"parity, {summary['error']} raised, {summary['skipped']} skipped; "
        f"{record['seconds']:.0f} s"
    ]
    if summary["served_by_torch"]:
        lines.append(f"{summary['served_by_torch']} served by torch itself: shown, not counted")
    if "geometric_mean" in summary:
        slowest = summary["slowest"]
        lines.append(
            f"geometric mean {summary['geometric_mean']:.2f}×, slowest {slowest['speedup']:.2f}× "
            f"({slowest['case']}), under 0.95×: {len(summary['slower_than_0.95'])}"
        )
        if summary["noisy"]:
            lines.append(
                f"~ {summary['noisy']} cases were disturbed: their samples scatter by a quarter"
            )
        if (plain := summary["geometric_mean_of_torch_float32"]) is not None:
            lines.append(f"in float32 against torch's own layers alone: {plain:.2f}×")
    if over := summary.get("over_best"):
        lines.append(
            f"over the fastest of torch's implementations {over['geometric_mean']:.2f}×, "
            f"{over['cases']} cases"
        )
    if "memory_geometric_mean" in summary:
        lines.append(
            f"peak memory {summary['memory_geometric_mean']:.2f}× of theirs (geometric mean)"
        )
    return lines


def show(record: Record) -> None:
    """The table on the terminal."""
    names = columns(record)
    if Console is None:
        for entry in record["results"]:
            print("  ".join(row(entry, names)))
    else:
        # Where output goes to a file or a log, the terminal's 80 columns would only cut the table.
        console = (
            Console(highlight=False)
            if Console().is_terminal
            else Console(highlight=False, width=150)
        )
        table = Table(title=f"{record['title']}: fastseq against torch")
        for name in names:
            table.add_column(
                name, justify="left" if name == "case" else "right", no_wrap=name != "case"
            )
        group = None
        for entry in record["results"]:
            if entry["group"] != group:
                group = entry["group"]
                mean = record["summary"].get("groups", {}).get(group)
                table.add_section()
                table.add_row(f"[bold]{group}", "", "", f"[bold]{mean:.2f}×" if mean else "")
            style = None
            if entry["status"] != "ok":
                style = "red" if entry["status"] != "skipped" else "dim"
            elif entry["speedup"] < 0.95:
                style = "yellow"
            table.add_row(*map(escape, row(entry, names)), style=style)
        console.print(table)
    for text in summary_lines(record):
        print(text)


def markdown(record: Record, pictures: bool = False) -> str:
    """The same as a page."""
    lines = [f"# {record['title']}: fastseq against torch, {record['date']}", ""]
    lines += [f"- {text}" for text in summary_lines(record)]
    lines += [
        "",
        "Timed in turns in one process; the median counts. Times include every product and",
        "conversion of a call; training is forward and backward. Error: ours / theirs against",
        "float64, relative to the largest value, of the worst result. % of GEMM: the time that the",
        "same operations take as whole-sequence matrix products through torch, as a share of ours.",
        "% of read: the bytes that must move at least once, against a large read's rate.",
    ]
    if OVER_BEST in columns(record):
        lines += [
            f"{OVER_BEST}: the fastest of torch's default and of its other implementations",
            "(SDPA's by name, FlexAttention compiled), named where it is not the default.",
        ]
    lines.append("")
    if pictures:
        lines += [f"![Speed-up of every case]({record['suite']}.png)", ""]
    lines += machine_table(record)
    return "\n".join(lines + tables(record)) + "\n"


def tables(record: Record) -> list[str]:
    """A table a group."""
    lines, names = list[str](), columns(record)
    group = None
    for entry in record["results"]:
        if entry["group"] != group:
            group = entry["group"]
            mean = record["summary"].get("groups", {}).get(group)
            lines += ["", f"## {group}" + (f": {mean:.2f}×" if mean else ""), ""]
            lines += [
                "| " + " | ".join(names) + " |",
                "|---" + "|---:" * (len(names) - 1) + "|",
            ]
        lines.append("| " + " | ".join(row(entry, names)) + " |")
        if "sample" in entry:
            spoken = ", ".join(f"{word} → {sounds}" for word, sounds in entry["sample"].items())
            lines += ["", f"{entry['words']} words, among them: {spoken}."]
    return lines


def machine_table(record: Record) -> list[str]:
    facts = [f"| {k} | {v} |" for k, v in record["machine"].items() if v is not None]
    return ["| machine | |", "|---|---|", *facts, ""]


def index(out: Path) -> str:
    """The summary of every suite whose record lies in ``out``."""
    lines = ["# fastseq against torch", ""]
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        if "suite" not in record:
            continue
        name = record["suite"]
        lines += [f"## [{record['title']}]({name}.md)", "", f"{record['date']}", ""]
        lines += [f"- {text}" for text in summary_lines(record)] + [""]
        if (out / f"{name}-overview.png").exists():
            lines += [f"![{record['title']}]({name}-overview.png)", ""]
        lines += machine_table(record)
    return "\n".join(lines)
