"""Scores of texts that a model wrote."""

import re
import string
from collections import Counter
from collections.abc import Sequence


def _sacrebleu():
    try:
        import sacrebleu
    except ImportError:
        raise ImportError(
            "sacrebleu is not installed: pip install sacrebleu", name="sacrebleu"
        ) from None
    return sacrebleu


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus as sacreBLEU computes it by default (arXiv 1804.08771), 0 to 100."""
    return _sacrebleu().corpus_bleu(list(hypotheses), [list(references)]).score


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of a corpus (Popović 2015), 0 to 100."""
    return _sacrebleu().corpus_chrf(list(hypotheses), [list(references)]).score


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, mean of all, 0 to 100.

    Words are runs of letters and digits, without regard to case, as in Google's ``rouge_score``.
    """
    scores = []
    for pair in zip(hypotheses, references, strict=True):
        a, b = ([w.casefold() for w in re.findall(r"[^\W_]+", text)] for text in pair)
        common = _common_subsequence(a, b)
        scores.append(200 * common / (len(a) + len(b)) if common else 0.0)
    return sum(scores) / max(1, len(scores))


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    lengths = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if x == y else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def answer_scores(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of words of an answer, 0 or 100 and 0 to 100, the best over references.

    By SQuAD's rules: without case, punctuation and articles. No references: "" is right.
    """
    given = _squad_words(answer)
    best = (0.0, 0.0)
    for reference in references or [""]:
        words = _squad_words(reference)
        exact = 100.0 * (given == words)
        common = sum((Counter(given) & Counter(words)).values())
        f1 = 200 * common / (len(given) + len(words)) if given and words else exact
        best = max(best[0], exact), max(best[1], f1)
    return best


def _squad_words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def macro_f1(predicted: Sequence[int], labels: Sequence[int], classes: int) -> float:
    """F1 of each class, averaged, 0 to 100. A class that is neither given nor right counts 0."""
    scores = []
    for c in range(classes):
        hits = sum(p == label == c for p, label in zip(predicted, labels, strict=True))
        total = sum(p == c for p in predicted) + sum(label == c for label in labels)
        scores.append(200 * hits / total if total else 0.0)
    return sum(scores) / classes
