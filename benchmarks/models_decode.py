"""Decoding as the models suite runs it: a search that takes all its steps, with given weights."""

import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastseq.generation import FastDecoder, generate
from fastseq.models import Transformer

from .cases_models import Case
from .models_theirs import EOS, pair
from .models_torch import TorchModel
from .suite import Results, Skipped, Workload

GIVEN = 24  # tokens of the source, or that a language model goes on from


def has_fast_decoder(device: torch.device) -> bool:
    """It is written in C++ for a CPU."""
    return device.type == "cpu"


def decode(case: Case, device: torch.device) -> Workload:
    """On a CPU by the fast decoder, which packs the weights in their type; else by the model, which
    has them.
    """
    theirs, model = pair(case)
    fast = has_fast_decoder(device)
    if not fast:
        theirs, model = theirs.to(case.weights), model.to(case.weights)
    # Of torch's own layers: not what is measured.
    exact = TorchModel(model).to(device, torch.float64)
    theirs, model = theirs.to(device), model.to(device)

    translates = case.model == "Transformer"
    batch, steps, config = case.batch, case.steps, model.config
    given, target = (
        torch.randint(2, config.vocab_size, (batch, n), device=device) for n in (GIVEN, steps)
    )
    start = torch.full((batch, 1), config.bos_id, device=device)
    first = start if translates else torch.cat([start, given], 1)  # what the first step takes
    inputs = torch.cat([first, target[:, :-1]], 1)
    lengths, whole = (torch.full((batch,), n, device=device) for n in (GIVEN, inputs.shape[1]))
    source = (given, lengths) if translates else ()
    options: dict[str, Any] = {"max_new_tokens": steps, "beam_size": case.beam}
    if not translates:
        options["prefix"] = given
    if fast:
        options["weights"] = case.weights

    def ours() -> object:
        found = generate(model, *source, **options)
        assert all(len(h[0].tokens) == first.shape[1] - 1 + steps for h in found)
        return found

    def our_steps() -> Tensor:
        decoder = FastDecoder(model, case.weights) if fast else model
        of = {} if translates else {"batch_size": batch}
        state = decoder.begin(*source, **of, max_length=inputs.shape[1])
        chunks = inputs.split([first.shape[1], *[1] * (steps - 1)], 1)
        return torch.stack([decoder.step(tokens, state) for tokens in chunks], 1)

    if case.baseline == "transformers":
        run = _transformers_generate(theirs, given if translates else first, case)
        written = {"decoder_input_ids": inputs} if translates else {}
        with torch.no_grad():
            logits = theirs(given if translates else inputs, use_cache=False, **written).logits
        their_scores = chosen(logits[:, -steps:], target)
    else:
        run, their_scores = _ctranslate2(model, given, target, case)

    def results() -> tuple[Results, Results, Results]:
        with torch.no_grad():
            logits = exact(*source, inputs, whole)
        return (
            {"log-probabilities": chosen(our_steps(), target)},
            {"log-probabilities": their_scores},
            {"log-probabilities": chosen(logits[:, -steps:], target)},
        )

    read = sum(p.numel() for p in (*model.decoder.parameters(), model.output.weight))
    reader = model.encoder if translates else model.decoder
    before = batch * GIVEN * sum(p.numel() for p in reader.parameters())
    return Workload(
        {"fastseq": ours, case.baseline: run},
        results,
        2.0 * (batch * case.beam * steps * read + before),
        float(steps * read * case.weights.itemsize),
        facts={"tokens": batch * steps},
    )


def chosen(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities (B, T) of the target's words, as a search takes them: not in 16 bits."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, -1).gather(2, target[..., None])[..., 0]


def _transformers_generate(theirs: Any, given: Tensor, case: Case) -> Callable[[], object]:
    mask = torch.ones_like(given)
    before = 1 if case.model == "Transformer" else given.shape[1]
    theirs.generation_config.pad_token_id = theirs.config.pad_token_id
    if case.model == "GPT":  # its end is its start, which it may say
        theirs.generation_config.eos_token_id = None
        theirs.generation_config.pad_token_id = EOS

    def run() -> object:
        found = theirs.generate(
            given, attention_mask=mask, do_sample=False, num_beams=case.beam,
            max_new_tokens=case.steps,
        )  # fmt: skip
        assert found.shape[1] == before + case.steps
        return found

    return run


def _ctranslate2(
    model: Transformer, source: Tensor, target: Tensor, case: Case
) -> tuple[Callable[[], object], Tensor]:
    try:
        import ctranslate2
    except ImportError:
        raise Skipped("CTranslate2 is not installed (pip install ctranslate2)") from None
    from fastseq.integrations.ctranslate2 import convert

    kind = str(case.weights).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model")
        convert(model, path, quantization=kind)
        translators = [
            ctranslate2.Translator(path, inter_threads=1, intra_threads=n, compute_type=kind)
            for n in {1, torch.get_num_threads()}
        ]
    words, reference = ([[str(i) for i in row] for row in x.tolist()] for x in (source, target))

    def translate(translator: Any) -> object:
        found = translator.translate_batch(
            words, beam_size=case.beam, max_decoding_length=case.steps
        )
        assert len(found[0].hypotheses[0]) == case.steps
        return found

    # Its threads wait for one another long on some machines: it may have one where that is quicker.
    translator = min(translators, key=lambda t: min(timeit.repeat(lambda: translate(t), number=1)))

    def run() -> object:
        return translate(translator)

    scores = [result.log_probs[: case.steps] for result in translator.score_batch(words, reference)]
    return run, torch.tensor(scores)
