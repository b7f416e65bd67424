"""One model type: built tiny, run with eager attention, ours and sdpa, and compared."""

import copy
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from fastseq.integrations import huggingface

from . import configs, inputs

LARGEST = 50_000_000  # parameters: more takes too long
TOLERANCE = 1e-3  # relative to the largest value
_NOT_COMPARED = {"past_key_values", "attentions", "cross_attentions", "hidden_states",
                 "encoder_attentions", "decoder_attentions", "router_logits"}  # fmt: skip

#: What may come of it.
SAME, ROUNDING, AS_SDPA, OWN, REFUSED, NO_ATTENTION, NOT_BUILT, TOO_LONG, DIFFERENT, CRASHED = (
    "same", "within rounding", "as sdpa", "own attention", "clear error", "no attention",
    "not built", "TOO LONG", "DIFFERENT", "CRASHED",
)  # fmt: skip
FAILURES = (DIFFERENT, CRASHED)


@dataclasses.dataclass
class Outcome:
    """What came of a model type; ``error`` is the largest relative one."""

    model_type: str
    model: str
    outcome: str
    error: float | None
    note: str


class _NotBuilt(Exception):
    pass


def examine(model_type: str) -> Outcome:
    """Builds the type's most telling class that runs, and compares."""
    huggingface.register()
    calls = _counted()
    try:
        eager, call = _running(model_type)
    except _NotBuilt as reason:
        return Outcome(model_type, "", NOT_BUILT, None, str(reason))
    name = type(eager).__name__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ours = _copy(eager, "fastseq")
            errors = _errors(eager, ours, call)
        except (ValueError, NotImplementedError) as error:
            if "fastseq" not in str(error):
                return Outcome(model_type, name, CRASHED, None, _short(error))
            return Outcome(model_type, name, REFUSED, None, _short(error))
        except Exception as error:
            return Outcome(model_type, name, CRASHED, None, _short(error))
    warned = any("code of its own" in str(w.message) for w in caught)
    outcome = SAME if calls else OWN if warned else NO_ATTENTION
    error, note = max(errors.values()), ", ".join(errors)
    if error > TOLERANCE:
        sdpa = _copied_or_none(eager, "sdpa")
        moved = _moved(eager)
        noise = 30 * max(_errors(eager, moved, call).values())
        to_sdpa = max(_errors(sdpa, ours, call).values()) if sdpa else float("inf")
        from_eager = max(_errors(eager, sdpa, call).values()) if sdpa else 0.0
        if error <= max(noise, 5 * min(from_eager, 1e-3)):
            outcome, note = ROUNDING, f"rounding alone makes {max(noise, from_eager):.0e}"
        elif to_sdpa <= max(TOLERANCE, noise):
            outcome, note = AS_SDPA, f"sdpa is {from_eager:.0e} off eager"
        else:
            outcome, note = DIFFERENT, f"{errors}; off sdpa {to_sdpa}"
    return Outcome(model_type, name, outcome, error, note)


def quiet() -> None:
    """For a process that does nothing else."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def _counted() -> list[str]:
    """Wraps the registered functions; what they were called for is appended to the list."""
    calls: list[str] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(type(module).__name__)
            return function(module, *args, **kwargs)

        return counted

    for name in ("fastseq", "fastseq-additive"):
        AttentionInterface.register(name, counting(AttentionInterface._global_mapping[name]))
    return calls


def _running(model_type: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """An eager model with random weights, and arguments that it takes."""
    reasons: list[str] = []
    kinds = configs.classes_of(model_type)
    if not kinds:
        raise _NotBuilt("no model of its own")
    for config in _each(configs.tiny_configs(model_type), reasons):
        for kind in kinds[:3]:
            try:
                model = _build(kind, config)
            except Exception as error:
                reasons.append(f"{kind.__name__}: {_short(error)}")
                continue
            for scale in (0.3, 0.02):
                _randomize(model, scale)
                for call in _each(inputs.candidates(model), reasons):
                    try:
                        with torch.no_grad():
                            out = _floats(_run(model, call))
                    except Exception as error:
                        reasons.append(f"{kind.__name__}: {_short(error)}")
                        continue
                    # What explodes tells rounding, not attention.
                    if out and all(((x.abs() < 1e6) | (x < -1e30)).all() for x, _ in out):
                        return model, call
                    reasons.append(f"{kind.__name__}: not finite")
        if reasons and "million" in reasons[-1]:
            break  # the next are larger
    reasons.sort(key=lambda r: "missing" in r or "million" in r)
    raise _NotBuilt(reasons[0] if reasons else "no input is taken")


def _each(generator: Iterator[Any], reasons: list[str]) -> Iterator[Any]:
    """The items until one cannot be made."""
    try:
        yield from generator
    except Exception as error:
        reasons.append(_short(error))


def _build(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        size = sum(p.numel() for p in _from(kind, config, "eager").parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(1)
    return _from(kind, config, "eager")


def _from(kind: type[PreTrainedModel], config: PreTrainedConfig, name: str) -> PreTrainedModel:
    return kind._from_config(copy.deepcopy(config), attn_implementation=name).float().eval()


def _randomize(model: PreTrainedModel, scale: float) -> None:
    """Weights so large that attention tells keys apart."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=scale)
            elif p.is_floating_point():
                p.add_(torch.randn_like(p) * 0.1 * scale)


def _copy(eager: PreTrainedModel, name: str) -> PreTrainedModel:
    model = _from(type(eager), eager.config, name)
    model.load_state_dict(eager.state_dict())
    for key, buffer in eager.named_buffers():
        model.get_buffer(key).copy_(buffer)
    return model


def _run(model: PreTrainedModel, call: dict[str, Tensor]) -> Any:
    torch.manual_seed(3)  # what is drawn in inference
    return model(**call)


def _floats(out: Any, key: str = "") -> list[tuple[Tensor, str]]:
    """All floating tensors in what a model returns, but caches and weights of attention."""
    if isinstance(out, Tensor):
        return [(out, key)] if out.is_floating_point() else []
    if isinstance(out, dict):
        return [x for k, v in out.items() if k not in _NOT_COMPARED for x in _floats(v, k)]
    if isinstance(out, (list, tuple)):
        return [x for v in out for x in _floats(v, key)]
    return []


def _errors(a: PreTrainedModel, b: PreTrainedModel, call: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of b by what was run: once, padded, gradients, written step by step."""
    found = {}
    with torch.no_grad():
        found["forward"] = _error(_run(a, call), _run(b, call))
        with_padding = inputs.padded(a, call)
        if with_padding is not None:
            try:
                expected = _run(a, with_padding)
            except Exception:
                expected = None
            if expected is not None:
                present = with_padding["attention_mask"]
                found["padded"] = _error(expected, _run(b, with_padding), present.bool())
    gradients = _gradients(a, call)
    if gradients is not None:
        found["gradient"] = _gradient_error(gradients, _gradients(b, call))
    for cache in ("dynamic", "static"):
        written = _written(a, with_padding or call, cache) if a.can_generate() else None
        if written is not None:
            found[f"{cache} cache"] = _error(written, _write(b, with_padding or call, cache))
    return found


def _error(expected: Any, actual: Any, present: Tensor | None = None) -> float:
    worst = 0.0
    ours = _floats(actual)
    theirs = _floats(expected)
    if [x.shape for x, _ in theirs] != [x.shape for x, _ in ours]:
        return float("inf")
    for (x, _), (y, _) in zip(theirs, ours, strict=True):
        if present is not None and x.shape[:2] == present.shape:
            x, y = x[present], y[present]
        x, y = x.double(), y.double()
        same = (x == y) | (x.isnan() & y.isnan())
        gap = torch.where(same, 0.0, (x - y).abs()).nan_to_num(torch.inf)
        finite = x[x.isfinite() & (x > -1e30)]  # what is written over excluded words
        scale = finite.abs().max().item() if finite.numel() else 1.0
        worst = max(worst, gap.max().item() / max(scale, 1e-6) if gap.numel() else 0.0)
    return worst


def _gradients(model: PreTrainedModel, call: dict[str, Tensor]) -> list[Tensor | None] | None:
    try:
        out = [x for x, _ in _floats(_run(model, call)) if x.requires_grad and x.isfinite().all()]
        total = sum((x * torch.cos(torch.arange(x.numel())).view_as(x)).sum() for x in out)
        leaves = [p for p in model.parameters() if p.requires_grad]
        return list(torch.autograd.grad(total, leaves, allow_unused=True))  # type: ignore[arg-type]
    except Exception:
        return None


def _gradient_error(expected: list[Tensor | None], actual: list[Tensor | None] | None) -> float:
    if actual is None:
        return float("inf")
    scale = max((x.abs().max().item() for x in expected if x is not None and x.numel()), default=1)
    worst = 0.0
    for x, y in zip(expected, actual, strict=True):
        if x is None or y is None:
            # A query or key that changes nothing has no gradient or zeros.
            rest = x if y is None else y
            gap = 0.0 if rest is None else rest.abs().max().item()
        else:
            gap = (x - y).abs().nan_to_num(torch.inf).max().item() if x.numel() else 0.0
        worst = max(worst, gap / max(scale, 1e-6))
    return worst


def _written(model: PreTrainedModel, call: dict[str, Tensor], cache: str) -> Any:
    try:
        return _write(model, call, cache)
    except Exception:
        return None


def _write(model: PreTrainedModel, call: dict[str, Tensor], cache: str) -> Any:
    call = {k: v for k, v in call.items() if not k.startswith("decoder_input")}
    torch.manual_seed(4)
    options = {"cache_implementation": "static"} if cache == "static" else {}
    out = model.generate(
        **call, max_new_tokens=5, min_new_tokens=5, do_sample=False, num_beams=1,
        disable_compile=True, output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return torch.stack(out.logits)


def _moved(eager: PreTrainedModel) -> PreTrainedModel:
    """The model with each weight changed in the last place."""
    moved = _copy(eager, "eager")
    with torch.no_grad():
        for p in moved.parameters():
            if p.is_floating_point():
                p.mul_(1 + 1e-7 * torch.randn_like(p))
    return moved


def _copied_or_none(eager: PreTrainedModel, name: str) -> PreTrainedModel | None:
    try:
        return _copy(eager, name)
    except Exception:  # has no such implementation
        return None


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
