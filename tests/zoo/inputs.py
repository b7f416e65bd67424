"""Inputs that a model's forward takes, from its signature and its configuration."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

BATCH, TOKENS = 2, 9


def _first(config: Any, names: tuple[str, ...], default: Any) -> Any:
    """The first of these attributes that the configuration or a part of it has."""
    for part in (config, *(getattr(config, k, None) for k in config.sub_configs)):
        for name in names:
            if part is not None and getattr(part, name, None) is not None:
                return getattr(part, name)
    return default


def text(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tokens, with no padding; for the decoder as well if there is one."""
    parameters = inspect.signature(model.forward).parameters
    vocabulary = _first(model.config.get_text_config(), ("vocab_size",), 90)
    top = max(6, min(vocabulary, 90))
    call = {}
    if "input_ids" in parameters:
        call["input_ids"] = torch.randint(5, top, (BATCH, TOKENS))
    if "decoder_input_ids" in parameters:
        call["decoder_input_ids"] = torch.randint(5, top, (BATCH, TOKENS - 2))
    if "bbox" in parameters:
        call["bbox"] = torch.randint(0, 20, (BATCH, TOKENS, 4)).sort(-1).values[..., [0, 1, 2, 3]]
    return call


def images(model: PreTrainedModel) -> Iterator[Tensor]:
    """Pictures, and films, as they may be wanted."""
    config = model.config
    size = _first(config, ("image_size", "input_size", "crop_size", "img_size"), 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = _first(config, ("num_channels", "in_channels", "in_chans"), 3)
    channels = channels if isinstance(channels, int) else 3
    yield torch.randn(BATCH, channels, height, width)
    frames = _first(config, ("num_frames", "frames_per_clip"), 2)
    yield torch.randn(BATCH, frames, channels, height, width)
    yield torch.randn(BATCH, channels, 64, 64)


def sounds(model: PreTrainedModel, name: str) -> Iterator[Tensor]:
    """Waves for ``input_values``, spectra for ``input_features``."""
    config = model.config
    mels = _first(config, ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_size",
                           "feature_projection_input_dim", "input_dim"), 80)  # fmt: skip
    length = 2 * _first(config, ("max_source_positions",), 32)
    if name == "input_features":
        yield torch.randn(BATCH, mels, length)
        yield torch.randn(BATCH, length, mels)
    yield torch.randn(BATCH, 4000)
    yield torch.randn(BATCH, 1, 4000)
    yield torch.randn(BATCH, _first(config, ("max_length",), 32), mels)


def candidates(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Keyword arguments to try in turn until one is taken."""
    parameters = inspect.signature(model.forward).parameters
    words = text(model)
    main = model.main_input_name
    if "input_ids" in words and main == "input_ids":
        yield words
        for picture in images(model) if "pixel_values" in parameters else ():
            yield words | {"pixel_values": picture}
    for name in (main, *parameters):
        if name in ("pixel_values", "pixel_values_videos", "flattened_patches", "hidden_states"):
            for picture in images(model):
                yield {name: picture}
                yield words | {name: picture}
        if name in ("input_features", "input_values", "audio_values"):
            for sound in sounds(model, name):
                yield {name: sound}
                yield words | {name: sound}
    yield from _series(model)
    yield from _patches(model)
    hidden = _first(model.config, ("hidden_size", "d_model", "encoder_hidden_size"), 64)
    for name in ("inputs_embeds", "hidden_states"):
        if name in parameters:
            yield {name: torch.randn(BATCH, TOKENS, hidden)}
            yield {name: torch.randn(TOKENS, hidden)}


def _patches(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Two pictures of 4 by 4 patches in a row, for encoders of pictures of any size."""
    parameters = list(inspect.signature(model.forward).parameters)
    if "grid_thw" not in parameters:
        return
    config = model.config
    patch = _first(config, ("patch_size", "spatial_patch_size"), 14)
    channels = _first(config, ("in_channels", "in_chans", "num_channels"), 3)
    for depth in (_first(config, ("temporal_patch_size",), 1), 1, 2):
        rows = torch.randn(2 * 16, channels * depth * patch * patch)
        call = {parameters[0]: rows, "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}
        yield call | ({"merge_sizes": torch.tensor([2, 2])} if "merge_sizes" in parameters else {})


def _series(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Numbers over time, with their times where the model asks for those."""
    parameters = inspect.signature(model.forward).parameters
    if "past_values" not in parameters:
        return
    past, future = 16, _first(model.config, ("prediction_length",), 4)
    if "past_time_features" in parameters:
        yield {
            "past_values": torch.randn(BATCH, past),
            "past_time_features": torch.randn(BATCH, past, 1),
            "past_observed_mask": torch.ones(BATCH, past),
            "future_values": torch.randn(BATCH, future),
            "future_time_features": torch.randn(BATCH, future, 1),
        }
    length = _first(model.config, ("context_length",), 32)
    channels = _first(model.config, ("num_input_channels",), 1)
    yield {"past_values": torch.randn(BATCH, length, channels)}


def padded(model: PreTrainedModel, call: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The same with padding: on the left of what is written on, on the right of what is read."""
    names = inspect.signature(model.forward).parameters
    if "input_ids" not in call or "attention_mask" not in names:
        return None
    mask = torch.ones(call["input_ids"].shape, dtype=torch.long)
    if model.can_generate() and not model.config.is_encoder_decoder:
        mask[1, :3] = 0
    else:
        mask[1, -3:] = 0
    return call | {"attention_mask": mask}
