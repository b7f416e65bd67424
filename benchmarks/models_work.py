"""Turns a case of the models suite into things to run. All weights come from one random model."""

import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.generation import FastDecoder, generate
from fastseq.models import BERT, GPT, Transformer

from .cases_models import SIZES, Case
from .models_torch import TorchModel
from .suite import Results, Skipped, Workload
from .workloads import real_lengths

SEED, SOURCE_LENGTH = 20262, 24
EOS, PAD = 0, 1


def build(case: Case, device: torch.device) -> Workload:
    torch.manual_seed(SEED)
    return _decode(case) if case.kind == "decode" else _train(case, device)


# ---- decoding -----------------------------------------------------------------------------------


def _decode(case: Case) -> Workload:
    with tempfile.TemporaryDirectory() as folder:
        theirs = marian(case.size)
        theirs.final_logits_bias[0, [EOS, PAD]] = -1e4  # every sentence takes all steps
        theirs.save_pretrained(folder)
        model = Transformer.from_marian(folder)
    vocabulary = model.config.vocab_size
    source = torch.randint(2, vocabulary, (case.batch, SOURCE_LENGTH))
    lengths = torch.full((case.batch,), SOURCE_LENGTH)
    target = torch.randint(2, vocabulary, (case.batch, case.steps))
    start = torch.full((case.batch, 1), model.config.bos_id)
    inputs = torch.cat([start, target[:, :-1]], 1)
    decoder = FastDecoder(model, case.weights)

    def ours() -> object:
        return generate(
            model, source, lengths, max_new_tokens=case.steps, beam_size=case.beam,
            weights=case.weights,
        )  # fmt: skip

    def our_steps() -> Tensor:
        state = decoder.begin(source, lengths, max_length=case.steps)
        return torch.stack([decoder.step(tokens, state) for tokens in inputs.split(1, 1)], 1)

    if case.baseline == "transformers":
        run = _transformers_generate(theirs, source, case)
        with torch.no_grad():
            their_scores = chosen(
                theirs(input_ids=source, decoder_input_ids=inputs, use_cache=False).logits, target
            )
    else:
        run, their_scores = _ctranslate2(model, source, target, case)

    def results() -> tuple[Results, Results, Results]:
        with torch.no_grad():
            exact = model.double()(source, lengths, inputs, torch.full_like(lengths, case.steps))
        model.float()
        exact = exact.view(case.batch, case.steps, -1)
        return (
            {"log-probabilities": chosen(our_steps(), target)},
            {"log-probabilities": their_scores},
            {"log-probabilities": chosen(exact, target)},
        )

    rows, steps = case.batch * case.beam, case.steps
    read = sum(p.numel() for p in (*model.decoder.parameters(), model.output.weight))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    return Workload(
        {"fastseq": ours, case.baseline: run},
        results,
        2.0 * (rows * steps * read + case.batch * SOURCE_LENGTH * encoder),
        float(steps * read * case.weights.itemsize),
        facts={"tokens": case.batch * steps},
    )


def chosen(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities (B, T) of the target's words."""
    return torch.log_softmax(logits, -1).gather(2, target[..., None])[..., 0]


def _transformers_generate(theirs: Any, source: Tensor, case: Case) -> Callable[[], object]:
    mask = torch.ones_like(source)

    def run() -> object:
        found = theirs.generate(
            source, attention_mask=mask, do_sample=False, num_beams=case.beam,
            max_new_tokens=case.steps,
        )  # fmt: skip
        assert found.shape[1] == 1 + case.steps
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


# ---- training -----------------------------------------------------------------------------------


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
    theirs, model = _pair(case)
    if case.baseline == "torch":
        theirs = TorchModel(model)
    theirs, model = theirs.to(device).train(), model.to(device).train()
    inputs = given if case.model == "Transformer" else given[2:]
    real = torch.arange(target.shape[1], device=device) < lengths[:, None]

    def our_logits() -> Tensor:
        if case.model != "BERT":
            return model(*inputs)
        return model.output(model.bert(*inputs))

    def their_logits() -> Tensor:
        if case.baseline == "torch":
            return theirs(*inputs)[real]
        if case.model == "BERT":
            found = theirs(input_ids=target, attention_mask=real.long()).last_hidden_state
            return found[real] @ words(theirs).T
        if case.model == "GPT":
            return theirs(input_ids=target, attention_mask=real.long()).logits[real]
        mask = torch.arange(source.shape[1], device=device) < given[1][:, None]
        return theirs(
            input_ids=source, attention_mask=mask.long(), decoder_input_ids=target,
            decoder_attention_mask=real.long(), use_cache=False,
        ).logits[real]  # fmt: skip

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
        ours, other = outcome(our_logits, model), outcome(their_logits, theirs)
        exact = outcome(our_logits, model.double(), autocast=False)
        model.float()
        return ours, other, exact

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


def words(model: Any) -> Tensor:
    """The weight of the (target's) word embedding."""
    if isinstance(model, TorchModel):
        return model.words.weight
    if hasattr(model, "get_input_embeddings"):
        return model.get_input_embeddings().weight
    if isinstance(model, Transformer):
        return model.target_embedding.words.weight
    return (model.bert if isinstance(model, MaskedWords) else model).embedding.words.weight


class MaskedWords(torch.nn.Module):
    """BERT's vectors and a tied projection to words."""

    def __init__(self, bert: BERT) -> None:
        super().__init__()
        self.bert, self.config = bert, bert.config
        self.output = torch.nn.Linear(bert.config.hidden_size, bert.config.vocab_size, bias=False)
        self.output.weight = bert.embedding.words.weight


def _pair(case: Case) -> tuple[Any, Any]:
    """A model of ``transformers`` without dropout, and ours with its weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = {"Transformer": marian, "GPT": gpt2, "BERT": bert}[case.model](case.size)
        theirs.save_pretrained(folder)
        no_dropout = {"dropout": 0.0, "attention_dropout": 0.0}
        if case.model == "Transformer":
            return theirs, Transformer.from_marian(folder, **no_dropout)
        if case.model == "GPT":
            return theirs, GPT.from_pretrained(folder, **no_dropout)
        return theirs, MaskedWords(BERT.from_pretrained(folder, **no_dropout))


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise Skipped("transformers is not installed (pip install transformers)") from None
    return transformers


def marian(size: str) -> Any:
    width, heads, ffn, layers, vocabulary = SIZES[size]
    config = _library().MarianConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn, eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=PAD,
        forced_eos_token_id=None, scale_embedding=True, dropout=0.0,
    )  # fmt: skip
    return _library().MarianMTModel(config).eval()


def gpt2(size: str) -> Any:
    width, heads, _, layers, vocabulary = SIZES[size]
    config = _library().GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_head=heads, n_layer=layers, n_positions=512,
        bos_token_id=EOS, eos_token_id=EOS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return _library().GPT2LMHeadModel(config).eval()


def bert(size: str) -> Any:
    width, heads, ffn, layers, vocabulary = SIZES[size]
    config = _library().BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=ffn, pad_token_id=PAD,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return _library().BertModel(config, add_pooling_layer=False).eval()
