"""Tiny configurations of any model type, from the defaults of its configuration class."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .recipes import CLASSES, OPTIONS

VOCABULARY = 120
#: What follows from other attributes, and does not fit them once they are cut.
_DERIVED = {"out_features", "out_indices", "stage_names", "per_layer_config"}
_LAYERS = re.compile(
    r"(.*num_(hidden_|encoder_|decoder_|text_|vision_|global_|adapter_)?layers"
    r"|n_layers?|(encoder|decoder)_layers|depth|.*_(depth|num_layers)|layers|num_blocks)"
)
_SIZES: list[tuple[re.Pattern[str], int]] = [
    (re.compile(pattern), size)
    for pattern, size in [
        (r"(?!mamba|ssm)(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads)", 2),
        (r"(?!mamba|ssm)(.*_)?(num_((self_)?attention_|key_|value_)?heads|n_heads?)", 4),
        (r"(.*_)?attention_heads", 4),
        (r"linear_num_(key|value)_heads", 4),
        (r"(.*_)?(head_dim|dim_head|d_kv)|linear_(key|value)_head_dim", 16),
        (r"(.*_)?lora_rank(_\w+)?|sq_lora\w*", 16),
        (r"n_inner|(.*_)?(intermediate_(size|dim)|ffn_(dim|hidden_size)|d_ff|mlp_dim|d_inner)", 96),
        (r"(.*_)?(vocab_size|vocab_size_per_layer_input)", VOCABULARY),
        (r"max_(position_embeddings|sequence_length|seq_len)|n_positions|n_ctx|(context|block)_size"
         r"|max_(source|target)_positions", 64),
        (r"(.*_)?(hidden_(size|dim)|d_model|n_embd|embed_dim|embedding_(size|dim)|emb_dim"
         r"|projection_dim|proj_dim|hidden_size_per_layer_input|output_dim|out_hidden_size|width"
         r"|model_dim|word_embed_proj_dim)", 64),
        (r"num_(local_|routed_|logical_)?experts|n_routed_experts|moe_num_experts", 4),
        (r"num_experts_per_tok|moe_(topk|top_k|k)|top_k_experts|num_selected_experts", 2),
        (r"n_group|topk_group", 1),
        (r"(attention_)?sliding_window|local_attention|attention_window_size", 4),
        (r"image_size|pretrain_image_size", 32),
        (r"num_frames|tubelet_size", 2),
        (r"spectrogram_length|max_length", 32),
        (r"first_k_dense_replace", 1),
    ]
]  # fmt: skip


def classes_of(model_type: str) -> list[type[PreTrainedModel]]:
    """The models of a configuration class, the most telling first."""
    wanted = CONFIG_MAPPING[model_type]
    folder = wanted.__module__.rsplit(".", 1)[0]
    found = []
    for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        if module.name.startswith("modeling_"):
            for thing in vars(importlib.import_module(f"{folder}.{module.name}")).values():
                if (
                    isinstance(thing, type)
                    and issubclass(thing, PreTrainedModel)
                    and thing.__module__ == f"{folder}.{module.name}"
                    and thing.config_class is wanted
                    and thing.forward is not PreTrainedModel.forward
                    and "forward" in {n for k in thing.__mro__[:-3] for n in vars(k)}
                ):
                    found.append(thing)
    preferred = CLASSES.get(model_type)
    order = [
        "ForCausalLM",
        "LMHeadModel",
        "ForConditionalGeneration",
        "MTModel",
        "Model",
        "ForMaskedLM",
    ]

    def rank(kind: type) -> tuple[bool, int, int]:
        ends = [i for i, end in enumerate(order) if kind.__name__.endswith(end)]
        return kind.__name__ != preferred, ends[0] if ends else len(order), len(kind.__name__)

    return sorted((k for k in found if not k.__name__.endswith("PreTrainedModel")), key=rank)


def tiny_configs(model_type: str) -> Iterator[PreTrainedConfig]:
    """Configurations worth trying, the smallest first: all sizes cut, layers cut, as they are."""
    kind = CONFIG_MAPPING[model_type]
    for cut in (_cut_all, _cut_layers):
        try:
            plain = kind().to_dict()
        except Exception:
            plain = {}
        options = _tiny(plain, cut) | OPTIONS.get(model_type, {})
        for drop in ("model_type", "transformers_version", "architectures", "dtype"):
            options.pop(drop, None)
        yield kind(**options)
    yield kind(**OPTIONS.get(model_type, {}))


def _cut_all(name: str, value: int) -> int:
    for pattern, size in _SIZES:
        if pattern.fullmatch(name):
            return min(value, size) if value > 0 else value
    return value


def _cut_layers(name: str, value: int) -> int:
    return min(value, VOCABULARY) if name.endswith("vocab_size") else value


def _tiny(plain: dict[str, Any], cut: Any) -> dict[str, Any]:
    """The dictionary of a configuration with fewer layers, and other sizes by ``cut``."""
    layers = plain.get("num_hidden_layers")
    kinds = plain.get("layer_types") or plain.get("layers_block_type") or plain.get("block_types")
    keep = 2
    if isinstance(kinds, list) and kinds:
        # The first run of layers that holds each kind, as far as that is short.
        keep = max(2, min(6, 1 + max(kinds.index(kind) for kind in set(kinds))))
    tiny: dict[str, Any] = {}
    for name, value in plain.items():
        if name in _DERIVED:
            continue
        if isinstance(value, dict) and "model_type" in value:
            value = _tiny(value, cut)
        elif isinstance(value, dict) and cut is _cut_all and "rope" in str(name):
            value = _tiny_rope(value, plain)
        elif isinstance(value, list) and layers and len(value) == layers and layers > keep:
            value = value[:keep]
        elif isinstance(value, bool) or not isinstance(value, int):
            pass
        elif re.fullmatch(r".*token_(id|index)", str(name)):
            value = value if value < VOCABULARY - 30 else VOCABULARY - 30 + sum(map(ord, name)) % 29
        elif _LAYERS.fullmatch(str(name)):
            value = min(value, keep if name == "num_hidden_layers" else 2)
        else:
            value = cut(str(name), value)
        tiny[name] = value
    if isinstance(tiny.get("num_key_value_heads"), int) and plain.get(
        "num_attention_heads"
    ) == plain.get("num_key_value_heads"):
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
    shared = tiny.get("num_kv_shared_layers")
    if shared:
        tiny["num_kv_shared_layers"] = min(shared, 2)
    return tiny


def _tiny_rope(rope: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Sections of rotary positions for a head of 16."""
    heads = plain.get("num_attention_heads") or plain.get("num_heads") or 1
    head = plain.get("head_dim") or (plain.get("hidden_size") or 0) // heads or 128
    tiny = {k: _tiny_rope(v, plain) if isinstance(v, dict) else v for k, v in rope.items()}
    sections = rope.get("mrope_section")
    if sections:
        total = sum(sections) * 16 // head
        small = [max(1, x * 16 // head) for x in sections[1:]]
        tiny["mrope_section"] = [total - sum(small), *small]
    return tiny


def model_types() -> list[str]:
    """All of the installed transformers."""
    return sorted(CONFIG_MAPPING.keys())


VERSION = transformers.__version__
