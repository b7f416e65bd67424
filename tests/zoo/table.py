"""The table of docs/zoo.md."""

import collections

from .compare import NOT_BUILT, TOO_LONG, Outcome


def table(outcomes: list[Outcome], version: str) -> str:
    """Markdown: counts, a line a model type that was built, and why the rest was not."""
    counts = collections.Counter(o.outcome for o in outcomes)
    lines = [
        "# The zoo of Hugging Face transformers",
        "",
        f"Every model type of transformers {version} that a tiny random configuration can build,",
        'with "fastseq" against "eager" attention: outputs, with padding, gradients, and what is',
        "written with dynamic and static caches. `make zoo` makes this page.",
        "",
        "| outcome | types | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| {kind} | {n} | {_MEANING[kind]} |" for kind, n in counts.most_common()]
    lines += ["", "| type | class | outcome | relative error |", "|---|---|---|---|"]
    built = [o for o in outcomes if o.outcome not in (NOT_BUILT, TOO_LONG)]
    for o in built:
        error = "" if o.error is None else f"{o.error:.0e}"
        lines.append(f"| {o.model_type} | {o.model} | {o.outcome} | {error} |")
    lines += ["", "Not built:", ""]
    reasons = collections.defaultdict(list)
    for o in outcomes:
        if o.outcome in (NOT_BUILT, TOO_LONG):
            reasons[o.note.replace("|", "/")].append(o.model_type)
    lines += [f"- {', '.join(kinds)}: {reason}" for reason, kinds in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


_MEANING = {
    "same": "fastseq computed attention, and the numbers are eager's",
    "within rounding": "the numbers differ no more than when weights change in the last place",
    "as sdpa": "the numbers are those of torch's sdpa, which differ from eager's",
    "own attention": "the model computes attention by itself and said so; the numbers are eager's",
    "clear error": "an error that names the model and what serves it",
    "no attention": "no layer of the model, on this input, called an attention implementation",
    "not built": "no tiny configuration and input were found",
    "DIFFERENT": "other numbers, silently",
    "CRASHED": "another error than a clear one",
    "TOO LONG": "not done in time",
}
