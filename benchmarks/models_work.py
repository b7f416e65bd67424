"""Turns a case of the models suite into things to run. All weights come from one random model."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases_models import SIZES, Case
from .models_decode import decode
from .models_theirs import PAD, pair, words
from .models_torch import TorchModel
from .suite import Results, Workload
from .workloads import real_lengths

SEED = 20262


def build(case: Case, device: torch.device) -> Workload:
    torch.manual_seed(SEED)
    return decode(case, device) if case.kind == "decode" else _train(case, device)


def _train(case: Case, device: torch.device) -> Workload:
    pairs = real_lengths()
    if case.bucketed:
        pairs = sorted(pairs, key=sum)[len(pairs) // 2 :]
    pairs = pairs[: case.batch]
    vocabulary = SIZES[case.size][4]

    def tokens(lengths: Tensor) -> Tensor:
        padded = torch.randint(2, vocabulary, (case.batch, int(lengths.max())))
        return padded.where(torch.arange(padded.shape[1]) < lengths[:, None], PAD).to(device)

    source_lengths, target_lengths = (torch.tensor(x) for x in zip(*pairs))
    source, target = tokens(source_lengths), tokens(target_lengths)
    labels = torch.randint(2, vocabulary, (int(target_lengths.sum()),), device=device)
    lengths = target_lengths.to(device)
    given = (source, source_lengths.to(device), target, lengths)
    theirs, model = pair(case)
    # Of torch's own layers: not what is measured.
    exact = TorchModel(model).to(device, torch.float64)
    if case.baseline == "torch":
        theirs = TorchModel(model)
    theirs, model = theirs.to(device).train(), model.to(device).train()
    inputs = given if case.model == "Transformer" else given[2:]
    real = torch.arange(target.shape[1]) < target_lengths[:, None]
    at = real.flatten().nonzero().squeeze(1).to(device)
    real = real.to(device)

    def rows(padded: Tensor) -> Tensor:
        return padded.flatten(0, 1)[at]

    def our_logits() -> Tensor:
        if case.model != "BERT":
            return model(*inputs)
        return model.output(model.bert(*inputs))

    def their_logits() -> Tensor:
        if case.baseline == "torch":
            return rows(theirs(*inputs))
        if case.model == "BERT":
            found = theirs(input_ids=target, attention_mask=real.long()).last_hidden_state
            return rows(found) @ words(theirs).T
        if case.model == "GPT":
            return rows(theirs(input_ids=target, attention_mask=real.long()).logits)
        mask = torch.arange(source.shape[1], device=device) < given[1][:, None]
        found = theirs(
            input_ids=source, attention_mask=mask.long(), decoder_input_ids=target,
            decoder_attention_mask=real.long(), use_cache=False,
        )  # fmt: skip
        return rows(found.logits)

    def step(
        logits: Callable[[], Tensor],
        of: torch.nn.Module,
        autocast: bool = case.dtype != torch.float32,
    ) -> Tensor:
        for parameter in of.parameters():
            parameter.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = logits()
            loss = F.cross_entropy(found.float() if autocast else found, labels)
        loss.backward()
        return found.detach()

    def outcome(logits: Callable[[], Tensor], of: Any, **options: bool) -> Results:
        found = step(logits, of, **options)
        return {"logits": found, "grad words": words(of).grad.detach().clone()}

    def results() -> tuple[Results, Results, Results]:
        oracle = outcome(lambda: rows(exact(*inputs)), exact, autocast=False)
        return outcome(our_logits, model), outcome(their_logits, theirs), oracle

    size = sum(p.numel() for p in model.parameters())
    count = int(target_lengths.sum()) + int(source_lengths.sum()) * (case.model == "Transformer")
    return Workload(
        {
            "fastseq": lambda: step(our_logits, model),
            case.baseline: lambda: step(their_logits, theirs),
        },
        results,
        6.0 * size * count / (2 if case.model == "Transformer" else 1),
        3.0 * size * 4,
        facts={"tokens": count},
    )
