"""``generate``: checks what is asked for, and runs the search that serves it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .beam import search_beams
from .decoding import Decoding, Hypothesis, Rows
from .fast import FastDecoder
from .greedy import most_likely, sampler, search_rows
from .packed import unsupported

Prefix = Tensor | Sequence[Sequence[int]]


def generate(
    model: Any,
    source: Tensor | None = None,
    source_lengths: Tensor | None = None,
    *,
    prefix: Prefix | None = None,
    max_new_tokens: int,
    beam_size: int = 1,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_return: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    cache: str = "contiguous",
    need_attention: bool = False,
    weights: torch.dtype | None = None,
) -> list[list[Hypothesis]]:
    """Sequences that a model continues or translates to: greedy, sampled or by beam search.

    Every sequence starts with ``model.config.bos_id``, which is never generated, goes on with its
    prefix, and ends with ``model.config.eos_id`` or after ``max_new_tokens``. Sentences that end
    leave the batch. A hypothesis scores

        log P(Y) / ((5 + |Y|) / 6)^length_penalty

    (Wu et al. 2016, arXiv 1609.08144) where Y is what was generated, the end included, and P is the
    model's distribution, whatever the temperature. Beam search goes on until ``beam_size``
    hypotheses are finished and no unfinished one would, if it ended now, score better.

    Args:
        model: anything with ``begin``, ``step`` and ``config``: ``Seq2Seq``, ``Transformer``,
            ``GPT`` or ``FastDecoder``. It decodes in evaluation mode, whatever its own.
        source: (B, S) int64, right-padded, for an encoder-decoder; source_lengths: (B,) int64, by
            default what comes before the padding.
        prefix: tokens that each result starts with: (B, P), or B lists of any lengths. Without a
            source it says how many sequences there are; None is one empty prefix.
        max_new_tokens: at most so many tokens follow the prefix.
        beam_size: 1 is greedy.
        sample: draw from the distribution at ``temperature``, cut to the ``top_k`` best tokens
            (0: all) and to the best that together have probability ``top_p``.
        num_return: hypotheses for each sentence: any number for sampling, at most ``beam_size`` for
            beam search, 1 for greedy search.
        no_repeat_ngram: n > 0 forbids every n-gram to occur twice in a result.
        generator: of the draws, on the model's device.
        use_cache: False steps over the whole sequence every time: slow, and the same tokens.
        cache: "contiguous" or "paged".
        need_attention: also return the attention weights of each token.
        weights: of a ``FastDecoder`` of this ``Transformer`` or ``GPT`` on the CPU: torch.float32,
            torch.bfloat16 or torch.int8. By default a model of float32 there gets one of float32,
            unless another cache or attention weights are asked for. Packed weights are kept as long
            as the model, and packed again when its parameters change.

    Returns:
        For each of the B sentences its hypotheses, best first: ``num_return``, or fewer where beam
        search finds no more.

    Raises:
        ValueError, TypeError: naming the argument, before any step.
    """
    _check_numbers(max_new_tokens, beam_size, num_return, no_repeat_ngram, length_penalty)
    if sample:
        _check_sampling(temperature, top_k, top_p, beam_size)
    elif num_return > beam_size:
        raise ValueError(f"num_return must be at most beam_size={beam_size}, got {num_return}")
    if cache not in ("contiguous", "paged"):
        raise ValueError(f"cache must be 'contiguous' or 'paged', got {cache!r}")
    model = _fastest(model, weights, use_cache and cache == "contiguous" and not need_attention)
    if source is not None:
        source, source_lengths = _checked_source(source, source_lengths, model.config.pad_id)
    elif source_lengths is not None:
        raise ValueError("source_lengths were given without a source")
    prefixes = _checked_prefix(prefix, source, model.config.vocab_size)
    if not prefixes:
        return []
    device = next(model.parameters()).device if source is None else source.device
    rows = _first_rows(prefixes, source, max_new_tokens, model, need_attention, device)
    stepped = rows.tokens.shape[1] - 1  # over the last token there is no step
    if stepped > (most := getattr(model.config, "max_length", stepped)):
        raise ValueError(
            f"the prefix and max_new_tokens={max_new_tokens} come to {stepped} tokens; the model's "
            f"max_length is {most}"
        )
    options: dict[str, Any] = {"max_length": stepped, "cache": cache}
    if need_attention:
        options["need_attention"] = True
    with torch.no_grad(), _evaluating(model):
        if source is None:
            state = model.begin(batch_size=len(prefixes), **options)
        else:
            state = model.begin(source, source_lengths, **options)
        # Alignments are known for a step's last token only, so that each then takes a step.
        length = 1 if need_attention else 1 + min(map(len, prefixes))
        decoding = Decoding(model, state, rows, length, no_repeat_ngram, use_cache)
        if beam_size > 1:
            vocabulary = model.config.vocab_size
            found = search_beams(decoding, beam_size, vocabulary, length_penalty)
        else:
            if num_return > 1:
                every = torch.arange(len(prefixes), device=device)
                decoding.select(every.repeat_interleave(num_return))
            choose = sampler(temperature, top_k, top_p, generator) if sample else most_likely
            found = search_rows(decoding, choose, length_penalty)
    results: list[list[Hypothesis]] = [[] for _ in prefixes]
    for sentence, hypothesis in found:
        if hypothesis.attention is not None and source_lengths is not None:
            shown = hypothesis.attention[:, : int(source_lengths[sentence])]
            hypothesis = replace(hypothesis, attention=shown)
        results[sentence].append(hypothesis)
    return [sorted(h, key=lambda x: -x.score)[:num_return] for h in results]


def _fastest(model: Any, weights: torch.dtype | None, plain: bool) -> Any:
    """The model, or a fast decoder of it where that serves."""
    if weights is not None:
        if not plain:
            raise ValueError(
                f"weights={weights} needs the contiguous cache, and has no attention to show"
            )
        return FastDecoder(model, weights)
    if plain and _extension.load() and unsupported(model) is None:
        return FastDecoder(model)
    return model


def _first_rows(
    prefixes: list[list[int]],
    source: Tensor | None,
    max_new_tokens: int,
    model: Any,
    need_attention: bool,
    device: torch.device,
) -> Rows:
    """Start and prefix of every sentence, with room for what follows."""
    forced = [1 + len(tokens) for tokens in prefixes]
    width = max(forced) + max_new_tokens
    tokens = torch.full((len(prefixes), width), model.config.pad_id, dtype=torch.long)
    for row, prefix in zip(tokens, prefixes):
        row[: 1 + len(prefix)] = torch.tensor([model.config.bos_id, *prefix])
    given = torch.tensor(forced, device=device)
    attention = None
    if need_attention:
        if source is None:
            raise ValueError("need_attention=True needs a source to align with")
        attention = torch.zeros(*tokens.shape, source.shape[1], device=device)
    sentence = torch.arange(len(prefixes), device=device)
    return Rows(tokens.to(device), given, given + max_new_tokens, sentence, attention)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = [part for part in model.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _check_numbers(
    max_new_tokens: int, beam_size: int, num_return: int, no_repeat_ngram: int, penalty: float
) -> None:
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("beam_size", beam_size, 1),
        ("num_return", num_return, 1),
        ("no_repeat_ngram", no_repeat_ngram, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    if not penalty >= 0:
        raise ValueError(f"length_penalty must be at least 0, got {penalty!r}")


def _check_sampling(temperature: float, top_k: int, top_p: float, beam_size: int) -> None:
    if beam_size > 1:
        raise ValueError(f"sample=True needs beam_size=1, got {beam_size}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if not isinstance(top_k, int) or top_k < 0:
        raise ValueError(f"top_k must be an int of at least 0, got {top_k!r}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p!r}")


def _checked_source(source: Tensor, lengths: Tensor | None, pad_id: int) -> tuple[Tensor, Tensor]:
    if source.dim() != 2 or source.dtype != torch.long:
        raise ValueError(
            f"source must be int64 (batch, tokens), got {source.dtype} {tuple(source.shape)}"
        )
    if lengths is None:  # up to the last word
        places = torch.arange(1, source.shape[1] + 1, device=source.device)
        lengths = (places * (source != pad_id)).amax(1)
    if lengths.shape != source.shape[:1] or lengths.dtype != torch.long:
        raise ValueError(
            f"source_lengths must be int64 ({len(source)},), "
            f"got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if len(source) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= source.shape[1]:
        raise ValueError(
            f"source_lengths must be between 1 and {source.shape[1]}, got {lengths.tolist()}"
        )
    return source, lengths


def _checked_prefix(
    prefix: Prefix | None, source: Tensor | None, vocabulary: int
) -> list[list[int]]:
    """One list for each sentence."""
    count = 1 if source is None else len(source)
    if prefix is None:
        return [[] for _ in range(count)]
    if isinstance(prefix, Tensor):
        if prefix.dim() != 2 or prefix.dtype != torch.long:
            raise ValueError(
                f"prefix must be int64 (batch, tokens), got {prefix.dtype} {tuple(prefix.shape)}"
            )
        prefix = prefix.tolist()
    lists = [list(tokens) for tokens in prefix]
    if source is not None and len(lists) != count:
        raise ValueError(
            f"prefix must have one entry for each of {count} sources, got {len(lists)}"
        )
    for i, tokens in enumerate(lists):
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < vocabulary:
                raise ValueError(f"prefix[{i}] must hold ids below {vocabulary}, got {token!r}")
    return lists
