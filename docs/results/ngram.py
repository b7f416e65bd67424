"""Perplexity of n-gram models beside that of a run of `fastseq train lm`, on its tokens.

    python ngram.py runs/gpt train.txt valid.txt

Interpolated with absolute discounting (Chen and Goodman, 1999): what an n-gram's discounted counts
leave over goes to the (n-1)-gram, in the end to all tokens alike.
"""

import math
import sys
from collections import Counter

from fastseq.data import Tokenizer, read_documents

DISCOUNT = 0.75


def sequences(tokenizer: Tokenizer, path: str, order: int) -> list[list[int]]:
    start = [tokenizer.bos_id] * (order - 1)
    texts = tokenizer.encode_batch(["\n".join(d) for d in read_documents(path)])
    return [[*start, *text, tokenizer.eos_id] for text in texts]


def perplexity(tokenizer: Tokenizer, train: str, valid: str, order: int) -> float:
    """Of the tokens and the end of each document of ``valid``."""
    seen, after, kinds = Counter(), Counter(), Counter()  # n-grams, contexts, what followed them
    for tokens in sequences(tokenizer, train, order):
        for at in range(order - 1, len(tokens)):
            for n in range(order):
                gram = tuple(tokens[at - n : at + 1])
                seen[gram] += 1
                after[gram[:-1]] += 1
                kinds[gram[:-1]] += seen[gram] == 1

    def probability(gram: tuple[int, ...]) -> float:
        lower = probability(gram[1:]) if len(gram) > 1 else 1 / len(tokenizer)
        context = gram[:-1]
        if not after[context]:
            return lower
        kept = max(seen[gram] - DISCOUNT, 0) / after[context]
        return kept + DISCOUNT * kinds[context] / after[context] * lower

    surprise, count = 0.0, 0
    for tokens in sequences(tokenizer, valid, order):
        for at in range(order - 1, len(tokens)):
            surprise -= math.log(probability(tuple(tokens[at - order + 1 : at + 1])))
            count += 1
    return math.exp(surprise / count)


if __name__ == "__main__":
    folder, train_file, valid_file = sys.argv[1:]
    own = Tokenizer.load(folder)
    for n in (1, 2, 3):
        print(f"{n}-gram: perplexity {perplexity(own, train_file, valid_file, n):.1f}")
