"""config.json: the released SmolLM3's keys and values, back to ModelConfig, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_models import LLAMA, QWEN2, QWEN3, SMOLLM3, Command

from conversion import ConversionError
from conversion.families import SpecialIds, from_huggingface, to_huggingface, yarn_factor_of
from conversion.weights import huggingface_shapes
from smol_config import load_mapping, parse
from smol_model.config import ModelConfig

REPOSITORY = Path(__file__).parent.parent.parent

RELEASED: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
"""config.json of HuggingFaceTB/SmolLM3-3B, without transformers_version."""

OURS = {
    "dtype": "bfloat16",
    "pretraining_tp": 1,
    "rope_parameters": {"rope_theta": 5000000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
}
"""Where an export differs: newer names beside the older ones, tying said aloud, generation with a cache."""


def released_model() -> ModelConfig:
    path = REPOSITORY / "configs/models/smollm3_3b.yaml"
    return parse(ModelConfig, load_mapping(path)["model"] | {"rope_theta": 5_000_000}, source=str(path))


def test_smollm3_has_the_released_configuration() -> None:
    ids = SpecialIds(bos=128000, eos=128012, pad=128004)
    assert to_huggingface(released_model(), ids, 65536, "bfloat16") == RELEASED | OURS


def released_tensors() -> set[str]:
    """The 326 names in model.safetensors.index.json of HuggingFaceTB/SmolLM3-3B."""
    projections = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    layer = [*projections, "input_layernorm", "post_attention_layernorm"]
    layers = {f"model.layers.{number}.{part}.weight" for number in range(36) for part in layer}
    return {"model.embed_tokens.weight", "model.norm.weight"} | layers


def test_smollm3_has_the_released_tensors() -> None:
    shapes = huggingface_shapes(released_model())
    assert shapes.keys() == released_tensors() and len(shapes) == 326  # its head is the embedding: no lm_head
    assert sum(math.prod(shape) for shape in shapes.values()) == 3_075_098_624
    last = {name.removeprefix("model.layers.35."): shape for name, shape in shapes.items() if ".35." in name}
    assert last == {
        "self_attn.q_proj.weight": (2048, 2048),
        "self_attn.k_proj.weight": (512, 2048),
        "self_attn.v_proj.weight": (512, 2048),
        "self_attn.o_proj.weight": (2048, 2048),
        "mlp.gate_proj.weight": (11008, 2048),
        "mlp.up_proj.weight": (11008, 2048),
        "mlp.down_proj.weight": (2048, 11008),
        "input_layernorm.weight": (2048,),
        "post_attention_layernorm.weight": (2048,),
    }
    assert shapes["model.embed_tokens.weight"] == (128256, 2048)


READERS = {
    "llama.cpp": {  # conversion/base.py and llama.py; a tokenizer's files besides
        "architectures",
        "head_dim",  # hidden_size / num_attention_heads where it lacks
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",  # before it read rope_parameters
        "rope_theta",
        "vocab_size",
    },
    "vLLM": {  # SmolLM3 by its backend of transformers, which reads the whole configuration; these it reads itself
        "architectures",
        "dtype",
        "torch_dtype",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rope_parameters",
        "tie_word_embeddings",
        "vocab_size",
    },
}
"""Keys that readers other than transformers look up, from their source; the files themselves were not put to them here."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("model", [SMOLLM3, LLAMA, QWEN2, QWEN3], ids=["SmolLM3", "Llama", "Qwen2", "Qwen3"])
def test_other_readers_find_their_keys(reader: str, model: ModelConfig) -> None:
    config = to_huggingface(model, SpecialIds(0, 1, 2), 64, "bfloat16")
    lacking = READERS[reader] - config.keys()
    assert lacking <= {"head_dim"}
    if "head_dim" in lacking:
        assert model.hidden_size == model.kv_channels * model.num_attention_heads


@pytest.mark.parametrize("written", ["as released", "as exported"])
def test_the_released_configuration_is_understood(written: str) -> None:
    config = RELEASED if written == "as released" else RELEASED | OURS
    model, length = from_huggingface(config, source="config.json")
    assert (model.model_dump(), length) == (released_model().model_dump(), 65536)


def test_llama_keys() -> None:
    config = to_huggingface(LLAMA, SpecialIds(None, 1, None), 64, "float32")
    only_smollm3 = {"layer_types", "max_window_layers", "no_rope_layers", "no_rope_layer_interval", "sliding_window"}
    assert set(config) == (set(RELEASED | OURS) - only_smollm3 - {"use_sliding_window"}) | {"head_dim"}
    assert (config["model_type"], config["architectures"], config["head_dim"]) == ("llama", ["LlamaForCausalLM"], 12)
    assert config["bos_token_id"] is None, "a key left out would become transformers' default, an id outside the vocabulary"


@pytest.mark.parametrize(
    "model",
    [
        SMOLLM3,
        SMOLLM3.model_copy(update={"no_rope": [0, 2], "head_dim": 16, "norm_epsilon": 1e-5, "init_std": 0.006}),
        SMOLLM3.model_copy(update={"tie_embeddings": False, "no_rope": 2, "rope_theta": 2_000_000.0}),
        LLAMA,
        LLAMA.model_copy(update={"head_dim": 8, "num_query_groups": 1, "tie_embeddings": True}),
        LLAMA.model_copy(update={"llama3_rope_factor": 8.0, "rope_theta": 500_000.0}),
        QWEN2,
        QWEN2.model_copy(update={"head_dim": 16, "num_query_groups": 1}),
        QWEN3,
        QWEN3.model_copy(update={"head_dim": None, "tie_embeddings": False, "norm_epsilon": 1e-5}),
    ],
)
def test_a_model_comes_back_from_its_configuration(model: ModelConfig) -> None:
    config = json.loads(json.dumps(to_huggingface(model, SpecialIds(0, 1, 2), 64, "float32")))
    assert from_huggingface(config, source="config.json") == (model, 64)


def test_both_generations_of_names_reach_transformers() -> None:
    import torch
    import transformers

    ids = SpecialIds(0, 1, 2)
    config = to_huggingface(SMOLLM3, ids, 64, "bfloat16")
    older = {name: value for name, value in config.items() if name not in ("dtype", "rope_parameters")}
    newer = {name: value for name, value in config.items() if name not in ("torch_dtype", "rope_theta", "rope_scaling")}
    for written in (config, older, newer):
        read = transformers.SmolLM3Config.from_dict(written)
        assert read.rope_parameters["rope_theta"] == SMOLLM3.rope_theta
        assert read.dtype in (torch.bfloat16, "bfloat16")
        assert read.no_rope_layers == [1, 1, 1, 0]


def test_yarn_is_written_as_smollm3s_card_says_and_read_by_both_generations() -> None:
    """The card: rope_scaling {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536} for 128k tokens."""
    import transformers

    config = to_huggingface(released_model(), SpecialIds(128000, 128012, 128004), 65536, "bfloat16", yarn_factor=2.0)
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536}
    plain = to_huggingface(released_model(), SpecialIds(128000, 128012, 128004), 65536, "bfloat16")
    assert config == plain | {
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": 5_000_000.0, **scaling},
        "max_position_embeddings": 131_072,
    }
    assert (yarn_factor_of(config), yarn_factor_of(plain)) == (2.0, 1.0)
    older = {name: value for name, value in config.items() if name != "rope_parameters"}
    newer = {name: value for name, value in config.items() if name not in ("rope_theta", "rope_scaling")}
    as_on_the_card = plain | {
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536},
        "max_position_embeddings": 131_072,
    }
    del as_on_the_card["rope_parameters"]
    reference = transformers.SmolLM3Config.from_dict(as_on_the_card).rope_parameters
    for written in (config, older, newer):
        read = transformers.SmolLM3Config.from_dict(written).rope_parameters
        assert {name: read[name] for name in ("rope_type", "rope_theta", *scaling)} == {**scaling, "rope_theta": 5_000_000.0}
        assert read == {name: value for name, value in reference.items() if name != "type"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        "of architecture GPT2LMHeadModel (model_type 'gpt2'); supported: SmolLM3ForCausalLM, LlamaForCausalLM, Qwen2",
    ),
    "another head": ({"architectures": ["SmolLM3ForTokenClassification"]}, "SmolLM3ForTokenClassification"),
    "no architecture": ({"model_type": None, "architectures": None}, "of architecture unnamed"),
    "attention bias": ({"attention_bias": True}, "has attention_bias=True"),
    "MLP bias": ({"mlp_bias": True}, "has mlp_bias=True"),
    "activation": ({"hidden_act": "gelu"}, "has hidden_act='gelu'"),
    "sliding window": ({"use_sliding_window": True, "sliding_window": 16, "layer_types": None}, "has a sliding window"),
    "rope scaling": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": None},
        "has rope scaling 'linear'",
    ),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "has partial_rotary_factor=0.5"),
    "a type that transformers refuses": ({"num_hidden_layers": "four"}, "is refused by transformers"),
    "sizes that do not fit": ({"num_key_value_heads": 3}, "not divisible by num_query_groups=3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_model_does_not_have_is_refused(name: str, tmp_path: Path, command: Command) -> None:
    changes, sentence = REFUSED[name]
    config = to_huggingface(SMOLLM3, SpecialIds(0, 1, 2), 64, "float32") | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = command("from-hf", tmp_path, tmp_path / "iter_0000000")
    assert ran.code == 2
    assert sentence in ran.err
    assert ran.err.count("\n") == 1 and "Traceback" not in ran.err
    assert not (tmp_path / "iter_0000000").exists()


def test_models_without_an_architecture_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"no_rope=4 with model\.qk_norm=true: no architecture"):
        to_huggingface(SMOLLM3.model_copy(update={"qk_norm": True}), SpecialIds(0, 1, 2), 64, "float32")
    with pytest.raises(
        ConversionError, match=r"qkv_bias=true only Qwen2ForCausalLM, model\.qk_norm=true only Qwen3ForCausalLM"
    ):
        to_huggingface(QWEN3.model_copy(update={"qkv_bias": True}), SpecialIds(0, 1, 2), 64, "float32")
    with pytest.raises(ConversionError, match="hidden_size=50 is not a multiple"):
        to_huggingface(LLAMA.model_copy(update={"hidden_size": 50, "head_dim": 12}), SpecialIds(0, 1, 2), 64, "float32")
