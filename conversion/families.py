"""Which Hugging Face architecture a model is, and its configuration in both directions: ModelConfig <-> config.json.

    SmolLM3    some layer has no rotary embedding
    Qwen3      queries and keys have norms
    Qwen2      queries, keys and values have biases
    Llama      none of these

The files are read by old and new releases of transformers alike: what release 5 calls `rope_parameters` and `dtype`
stands there under the older names `rope_theta` and `torch_dtype` as well.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from conversion import ConversionError
from smol_config import parse
from smol_model.config import ModelConfig


class SpecialIds(NamedTuple):
    """Token ids that a configuration names; None where the tokenizer has none."""

    bos: int | None
    eos: int | None
    pad: int | None


@dataclass(frozen=True)
class Family:
    """An architecture of transformers."""

    name: str
    """`model_type` in config.json."""
    architecture: str
    """Class of the model."""
    config_class: str
    """Class of the configuration, in the namespace of transformers."""


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config")
LLAMA = Family("llama", "LlamaForCausalLM", "LlamaConfig")
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", "Qwen2Config")
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", "Qwen3Config")
FAMILIES = (SMOLLM3, LLAMA, QWEN2, QWEN3)


def family_of(model: ModelConfig) -> Family:
    """The architecture that computes what `model` computes; raises ConversionError where none here does."""
    parts = {
        f"model.no_rope={model.no_rope}": SMOLLM3 if model.layers_without_rope else None,
        "model.qkv_bias=true": QWEN2 if model.qkv_bias else None,
        "model.qk_norm=true": QWEN3 if model.qk_norm else None,
    }
    found = {setting: family for setting, family in parts.items() if family}
    if len(found) > 1:
        owners = ", ".join(f"{setting} only {family.architecture}" for setting, family in found.items())
        raise ConversionError(
            f"{' with '.join(found)}: no architecture that can be exported has both ({owners}); train with one to export"
        )
    if found:
        return next(iter(found.values()))
    if model.hidden_size % model.num_attention_heads:
        raise ConversionError(
            f"model.hidden_size={model.hidden_size} is not a multiple of model.num_attention_heads="
            f"{model.num_attention_heads}, which transformers asks of a Llama; choose sizes that divide to export"
        )
    return LLAMA


# --- ModelConfig -> config.json --------------------------------------------------------------------------------------------


def to_huggingface(
    model: ModelConfig, ids: SpecialIds, sequence_length: int, dtype: str, yarn_factor: float = 1.0
) -> dict[str, Any]:
    """config.json of `model`; `dtype` is torch's name of the weights' dtype, `sequence_length` is in tokens.

    `yarn_factor` above 1 has readers stretch the rotary embedding to that many times the sequence length (YaRN); raises
    ConversionError where the model's is stretched already.
    """
    family = family_of(model)
    scaling = _scaling(model, sequence_length, yarn_factor)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "attention_dropout": 0.0,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "pad_token_id": ids.pad,
        "dtype": dtype,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": int(sequence_length * yarn_factor),
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.query_groups,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": {"rope_theta": model.rope_theta, **(scaling or {"rope_type": "default"})},
        "rope_scaling": scaling,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tie_embeddings,
        "use_cache": True,
        "vocab_size": model.vocab_size,
    }
    return dict(sorted((config | _OWN_SETTINGS[family](model)).items()))


def _scaling(model: ModelConfig, sequence_length: int, yarn_factor: float) -> dict[str, Any] | None:
    """The rotary embedding's stretching; None without."""
    check_yarn(model, yarn_factor)
    if yarn_factor > 1:
        return {"rope_type": "yarn", "factor": yarn_factor, "original_max_position_embeddings": sequence_length}
    if model.llama3_rope_factor:
        return {"rope_type": "llama3", "factor": model.llama3_rope_factor, **_LLAMA3_BANDS}
    return None


_LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Which frequencies Llama 3.1 and 3.2 stretch. Megatron-Core knows these values only."""


def check_yarn(model: ModelConfig, yarn_factor: float) -> None:
    """Raise ConversionError for YaRN on a model whose rotary embedding is stretched as Llama 3.1's."""
    if yarn_factor > 1 and model.llama3_rope_factor:
        raise ConversionError(
            f"--yarn {yarn_factor} with model.llama3_rope_factor={model.llama3_rope_factor}: a configuration holds one of "
            "them; leave --yarn out"
        )


def yarn_factor_of(config: Mapping[str, Any]) -> float:
    """The factor of an exported config.json's YaRN; 1 where it has none."""
    rope = config.get("rope_parameters") or {}
    return float(rope["factor"]) if rope.get("rope_type") == "yarn" else 1.0


def _own_head_dim(model: ModelConfig) -> dict[str, Any]:
    """Where the configuration has no such setting of its own, but the model's code honours it."""
    width = model.kv_channels
    return {"head_dim": width} if width * model.num_attention_heads != model.hidden_size else {}


def _smollm3(model: ModelConfig) -> dict[str, Any]:
    without_rope = set(model.layers_without_rope)
    config: dict[str, Any] = {
        **_LLAMA_AND_SMOLLM3,
        "layer_types": ["full_attention"] * model.num_layers,
        # Read by nothing while no layer has a sliding window; the released configuration has it.
        "max_window_layers": 28,
        # 1 = has rotary embedding. llama.cpp reads neither this nor the interval: it takes every 4th layer for one without.
        "no_rope_layers": [int(layer not in without_rope) for layer in range(model.num_layers)],
        "sliding_window": None,
        "use_sliding_window": False,
    }
    if isinstance(model.no_rope, int):
        config["no_rope_layer_interval"] = model.no_rope
    return config | _own_head_dim(model)


def _llama(model: ModelConfig) -> dict[str, Any]:
    return {**_LLAMA_AND_SMOLLM3, "head_dim": model.kv_channels}


def _qwen3(model: ModelConfig) -> dict[str, Any]:
    return {**_without_window(model), "attention_bias": False, "head_dim": model.kv_channels}


def _qwen2(model: ModelConfig) -> dict[str, Any]:
    return {**_without_window(model), **_own_head_dim(model)}


def _without_window(model: ModelConfig) -> dict[str, Any]:
    return {"max_window_layers": model.num_layers, "sliding_window": None, "use_sliding_window": False}


_LLAMA_AND_SMOLLM3: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    # 1: how the weights were split in training does not matter to readers; old Llama code splits its products by it.
    "pretraining_tp": 1,
}

_OWN_SETTINGS: dict[Family, Callable[[ModelConfig], dict[str, Any]]] = {
    SMOLLM3: _smollm3,
    LLAMA: _llama,
    QWEN2: _qwen2,
    QWEN3: _qwen3,
}
"""What a family's configuration has beside that which all have."""


# --- config.json -> ModelConfig --------------------------------------------------------------------------------------------


def from_huggingface(config: Mapping[str, Any], source: str) -> tuple[ModelConfig, int]:
    """The model of a config.json and its max_position_embeddings in tokens; `source` only serves the messages.

    Raises ConversionError for another architecture and for settings that ModelConfig cannot express.
    """
    family = _family_named(config, source)
    full = _with_defaults(config, family, source)
    _refuse_unknown_parts(full, source)
    heads, hidden, layers = full.num_attention_heads, full.hidden_size, full.num_hidden_layers
    head_dim = getattr(full, "head_dim", None) or hidden // heads
    fields: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": full.intermediate_size,
        "num_attention_heads": heads,
        "num_query_groups": full.num_key_value_heads,
        "head_dim": None if head_dim * heads == hidden else head_dim,
        "vocab_size": full.vocab_size,
        "tie_embeddings": full.tie_word_embeddings,
        "norm_epsilon": full.rms_norm_eps,
        "rope_theta": full.rope_parameters["rope_theta"],
        "llama3_rope_factor": full.rope_parameters["factor"] if full.rope_parameters["rope_type"] == "llama3" else None,
        "no_rope": _no_rope(full) if family is SMOLLM3 else None,
        "qk_norm": family is QWEN3,
        "qkv_bias": family is QWEN2,
        "init_std": full.initializer_range,
    }
    return parse(ModelConfig, fields, source=source), full.max_position_embeddings


def _family_named(config: Mapping[str, Any], source: str) -> Family:
    architecture = (config.get("architectures") or [None])[0]
    for family in FAMILIES:
        if config.get("model_type") == family.name and architecture in (None, family.architecture):
            return family
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise ConversionError(
        f"{source} is of architecture {architecture or 'unnamed'} (model_type {config.get('model_type')!r}); "
        f"supported: {supported}"
    )


def _with_defaults(config: Mapping[str, Any], family: Family, source: str) -> Any:
    """The configuration object of transformers, which knows the defaults of what the file leaves out."""
    import transformers

    own = copy.deepcopy(dict(config))  # from_dict writes into nested mappings
    try:
        return getattr(transformers, family.config_class).from_dict(own)
    except Exception as error:  # its validators raise many kinds
        raise ConversionError(f"{source} is refused by transformers: {' '.join(str(error).split())}") from error


def _refuse_unknown_parts(full: Any, source: str) -> None:
    rope = full.rope_parameters
    attention_bias, mlp_bias = getattr(full, "attention_bias", False), getattr(full, "mlp_bias", False)  # not in all families
    sliding = full.model_type != LLAMA.name and (
        full.use_sliding_window or any(kind != "full_attention" for kind in full.layer_types)
    )
    parts = {
        f"attention_bias={attention_bias}": attention_bias,
        f"mlp_bias={mlp_bias}": mlp_bias,
        f"hidden_act={full.hidden_act!r}": full.hidden_act not in ("silu", "swish"),
        "a sliding window": sliding,
        f"rope scaling {rope.get('rope_type')!r}": rope.get("rope_type") not in ("default", "llama3"),
        f"rope scaling 'llama3' with other values than {_LLAMA3_BANDS}": rope.get("rope_type") == "llama3"
        and any(rope.get(name) != value for name, value in _LLAMA3_BANDS.items()),
        f"partial_rotary_factor={rope.get('partial_rotary_factor')}": rope.get("partial_rotary_factor", 1.0) not in (None, 1.0),
    }
    if found := [part for part, present in parts.items() if present]:
        raise ConversionError(f"{source} has {' and '.join(found)}, which the model here does not have; it cannot be converted")


def _no_rope(full: Any) -> int | list[int] | None:
    """`no_rope` of ModelConfig: the interval where the layers follow it, else the 0-based layers, None for none."""
    layers, interval = full.num_hidden_layers, full.no_rope_layer_interval
    without = [layer for layer, has_rope in enumerate(full.no_rope_layers[:layers]) if not has_rope]
    if without and interval and without == list(range(interval - 1, layers, interval)):
        return int(interval)
    return without or None
