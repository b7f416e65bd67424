"""``python -m tests.zoo``: all model types, two at a time, and a table of what came of them."""

import argparse
import collections
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .compare import FAILURES
from .configs import VERSION, model_types
from .pool import examined
from .table import table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, help="the table, Markdown")
    parser.add_argument("--json", type=Path, help="all that was found, one object")
    parser.add_argument("--only", nargs="*", help="model types")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=float, default=90, help="that a model type may take")
    options = parser.parse_args()
    wanted = options.only or model_types()
    console = Console(stderr=True)
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("zoo", total=len(wanted))
        for outcome in examined(wanted, options.jobs, options.seconds):
            outcomes.append(outcome)
            progress.update(task, advance=1, description=outcome.model_type)
            if outcome.outcome in FAILURES or options.only:
                console.print(str(outcome), style="red" if outcome.outcome in FAILURES else None)
    outcomes.sort(key=lambda o: o.model_type)
    if options.json:
        options.json.write_text(json.dumps([vars(o) for o in outcomes], indent=1))
    if options.out:
        options.out.write_text(table(outcomes, VERSION))
    counts = collections.Counter(o.outcome for o in outcomes)
    console.print(", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    return any(o.outcome in FAILURES for o in outcomes)


if __name__ == "__main__":
    sys.exit(main())
