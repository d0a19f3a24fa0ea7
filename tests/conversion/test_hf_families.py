"""Configurations of other families: the released files of Qwen3, Llama 3.2 and Qwen2.5 come in and go out as they are."""

from typing import Any

import pytest

from conversion import ConversionError
from conversion.families import SpecialIds, from_huggingface, to_huggingface

RELEASED_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""config.json of Qwen/Qwen3-0.6B, without transformers_version."""


def test_the_released_qwen3_comes_and_goes() -> None:
    model, length = from_huggingface(RELEASED_QWEN3, source="config.json")
    assert (model.parameters, model.kv_channels, model.qk_norm, model.no_rope) == (596_049_920, 128, True, None)
    newer = {"dtype": "bfloat16", "pad_token_id": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert to_huggingface(model, SpecialIds(151643, 151645, None), length, "bfloat16") == RELEASED_QWEN3 | newer


LLAMA_3_2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
"""config.json of meta-llama/Llama-3.2-1B, without transformers_version."""


def test_the_released_llama_3_2_comes_and_goes() -> None:
    model, length = from_huggingface(LLAMA_3_2, source="config.json")
    assert (model.parameters, model.llama3_rope_factor, length) == (1_235_814_400, 32.0, 131_072)
    rope = LLAMA_3_2["rope_scaling"] | {"rope_theta": 500000.0}
    written = to_huggingface(model, SpecialIds(128000, 128001, None), length, "bfloat16")
    assert written == LLAMA_3_2 | {"dtype": "bfloat16", "pad_token_id": None, "rope_parameters": rope}


def test_frequencies_that_megatron_core_does_not_know_are_refused() -> None:
    scaling = LLAMA_3_2["rope_scaling"] | {"original_max_position_embeddings": 4096}
    with pytest.raises(ConversionError, match=r"has rope scaling 'llama3' with other values than .*8192"):
        from_huggingface(LLAMA_3_2 | {"rope_scaling": scaling}, source="config.json")


QWEN_2_5: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""config.json of Qwen/Qwen2.5-0.5B, without transformers_version."""


def test_the_released_qwen_2_5_comes_and_goes() -> None:
    model, length = from_huggingface(QWEN_2_5, source="config.json")
    assert (model.parameters, model.qkv_bias, model.qk_norm, length) == (494_032_768, True, False, 32_768)
    newer = {"dtype": "bfloat16", "pad_token_id": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    unused = {"sliding_window": None, "rope_scaling": None}
    released = {name: value for name, value in QWEN_2_5.items() if name != "use_mrope"}  # read by nothing
    assert to_huggingface(model, SpecialIds(151643, 151643, None), length, "bfloat16") == released | newer | unused


@pytest.mark.parametrize("window", [{"use_sliding_window": True, "sliding_window": 16}, {"attention_bias": True}])
def test_parts_of_a_qwen3_that_the_model_does_not_have_are_refused(window: dict[str, Any]) -> None:
    part = "a sliding window" if "sliding_window" in window else "attention_bias=True"
    with pytest.raises(ConversionError, match=f"config.json has {part}, which the model here does not have"):
        from_huggingface(RELEASED_QWEN3 | {"max_window_layers": 14} | window, source="config.json")
