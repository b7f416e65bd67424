"""What the general method does not guess: options of configurations, classes, inputs."""

from typing import Any

#: Options over the tiny ones.
_SERIES = {
    "prediction_length": 4,
    "context_length": 14,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES,
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_n_groups": 1},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "esm": {"vocab_size": 100, "mask_token_id": 3, "pad_token_id": 1},
    "gpt_neo": {
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
    },
    "xlnet": {"d_model": 64, "n_head": 4, "d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "mistral4": {"head_dim": 32, "qk_head_dim": 32},
    "ministral": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
}

#: The class to try first.
CLASSES: dict[str, str] = {}
