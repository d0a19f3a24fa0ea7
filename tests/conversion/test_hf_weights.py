"""The weight table: both libraries compute the same from the same weights, and would not with any of the usual mistakes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers
from small_models import LLAMA, QWEN2, QWEN3, SMOLLM3, load, random_weights

from conversion import ConversionError
from conversion.families import FAMILIES, SpecialIds, family_of, to_huggingface
from conversion.networks import MegatronNetwork, TransformersNetwork
from conversion.parity import TOLERANCE, Row, compare, fixed_rows
from conversion.weights import check_tensors, huggingface_shapes, weight_table
from smol_model.config import ModelConfig
from smol_model.spec import build_model, transformer_config
from smol_train.parallel import ParallelConfig, process_groups

LAYOUTS = {
    "SmolLM3, grouped": SMOLLM3,
    "SmolLM3, multi-head": SMOLLM3.model_copy(update={"num_query_groups": None}),
    "SmolLM3, multi-query, wide heads": SMOLLM3.model_copy(update={"num_query_groups": 1, "head_dim": 16}),
    "SmolLM3, first and third layer without rotary embedding": SMOLLM3.model_copy(update={"no_rope": [0, 2]}),
    "SmolLM3, untied, odd number of layers": SMOLLM3.model_copy(
        update={"num_layers": 5, "no_rope": 2, "tie_embeddings": False}
    ),
    "SmolLM3, every third of seven layers without rotary embedding, long contexts' base, narrow heads": SMOLLM3.model_copy(
        update={"num_layers": 7, "no_rope": 3, "rope_theta": 5e6, "norm_epsilon": 1e-5, "head_dim": 4, "num_query_groups": 4}
    ),
    "Llama, untied": LLAMA,
    "Llama, tied, grouped, narrow heads": LLAMA.model_copy(
        update={"tie_embeddings": True, "num_query_groups": 2, "head_dim": 8, "rope_theta": 500_000.0}
    ),
    "Llama, frequencies of Llama 3.2": LLAMA.model_copy(
        update={"tie_embeddings": True, "head_dim": 32, "rope_theta": 500_000.0, "llama3_rope_factor": 32.0}
    ),
    "Llama, frequencies of Llama 3.1, untied, grouped": LLAMA.model_copy(
        update={"num_query_groups": 2, "head_dim": 64, "rope_theta": 500_000.0, "llama3_rope_factor": 8.0, "norm_epsilon": 1e-5}
    ),
    "Llama, tied, multi-query, odd number of layers": LLAMA.model_copy(
        update={"tie_embeddings": True, "num_query_groups": 1, "num_layers": 3, "norm_epsilon": 1e-5, "rope_theta": 1e6}
    ),
    "Qwen2, tied, grouped": QWEN2,
    "Qwen2, untied, multi-query, wide heads": QWEN2.model_copy(
        update={"tie_embeddings": False, "num_query_groups": 1, "head_dim": 16}
    ),
    "Qwen2, untied, multi-head, base of a million": QWEN2.model_copy(
        update={"tie_embeddings": False, "num_query_groups": None, "rope_theta": 1e6}
    ),
    "Qwen2, tied, odd number of layers, narrow heads": QWEN2.model_copy(
        update={"num_layers": 3, "head_dim": 8, "norm_epsilon": 1e-5}
    ),
    "Qwen2, tied, one layer, fourteen heads in two groups": QWEN2.model_copy(
        update={"num_layers": 1, "hidden_size": 56, "num_attention_heads": 14, "norm_epsilon": 1e-3, "rope_theta": 500_000.0}
    ),
    "Qwen3, tied, grouped, wide heads": QWEN3,
    "Qwen3, untied, multi-head": QWEN3.model_copy(update={"tie_embeddings": False, "num_query_groups": None, "head_dim": None}),
    "Qwen3, multi-query, heads that do not divide the width": QWEN3.model_copy(
        update={"num_query_groups": 1, "num_attention_heads": 3, "head_dim": 24, "norm_epsilon": 1e-5}
    ),
    "Qwen3, tied, odd number of layers, narrow heads, small base": QWEN3.model_copy(
        update={"num_layers": 3, "head_dim": 4, "num_query_groups": 4, "rope_theta": 10_000.0, "norm_epsilon": 1e-5}
    ),
    "Qwen3, untied, one layer, multi-query": QWEN3.model_copy(
        update={"tie_embeddings": False, "num_layers": 1, "num_query_groups": 1, "rope_theta": 5e6, "norm_epsilon": 1e-3}
    ),
}


def test_every_class_of_transformers_is_compared_in_five_shapes_or_more() -> None:
    shapes = Counter(family_of(model).architecture for model in LAYOUTS.values())
    assert shapes.keys() == {family.architecture for family in FAMILIES} and min(shapes.values()) >= 5


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    with process_groups(ParallelConfig(), seed=0):
        yield


def megatron(model: ModelConfig) -> MegatronNetwork:
    network = build_model(model, transformer_config(model, "torch", "fp32"), "torch", 64, gather_logits=True)
    load(network, random_weights(model, torch.float32))
    return MegatronNetwork(network)


class DocumentsTogether(TransformersNetwork):
    """The mistake of letting documents in a row see each other."""

    def hidden(self, rows: Sequence[Row]) -> torch.Tensor:
        return super().hidden([Row(row.ids, (len(row.ids),)) for row in rows])


def huggingface(
    model: ModelConfig, weights: dict[str, torch.Tensor], kind: type = TransformersNetwork, **changes: Any
) -> TransformersNetwork:
    family = family_of(model)
    config = to_huggingface(model, SpecialIds(0, 1, 2), 64, "float32") | changes
    network = getattr(transformers, family.architecture)(getattr(transformers, family.config_class)(**config)).float()
    result = network.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= ({"lm_head.weight"} if model.tie_embeddings else set())
    made: TransformersNetwork = kind(network)
    return made


def rows(model: ModelConfig) -> list[Row]:
    return fixed_rows([7 * i % 256 for i in range(64)], model.vocab_size, 64)


def exported(model: ModelConfig) -> dict[str, torch.Tensor]:
    weights = random_weights(model, torch.float32)
    return {
        name: part for weight in weight_table(model) for name, part in weight.split(weights[weight.megatron], model).items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_agree_in_every_layout_packed_documents_included(name: str) -> None:
    model = LAYOUTS[name]
    figures = compare(megatron(model), huggingface(model, exported(model)), rows(model))
    assert figures["passed"], figures
    assert figures["max_logit_difference"] <= TOLERANCE == figures["tolerance"] < figures["max_logit"]
    assert figures["top1_agreement"] == 1.0
    assert figures["perplexity"]["megatron"] == pytest.approx(figures["perplexity"]["hf"], rel=1e-5)


MISTAKES = (
    "gate and up swapped",
    "queries not grouped",
    "rotary embedding everywhere",
    "documents see each other",
    "query and key norms swapped",
    "biases not grouped",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_parity_fails_when_the_conversion_is_wrong(mistake: str) -> None:
    model = {"query and key norms swapped": QWEN3, "biases not grouped": QWEN2}.get(mistake, SMOLLM3)
    weights, changes = exported(model), {}
    if mistake == "gate and up swapped":
        for name in [name for name in weights if "gate_proj" in name]:
            up = name.replace("gate", "up")
            weights[name], weights[up] = weights[up], weights[name]
    elif mistake == "queries not grouped":
        parts = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
        stacked = random_weights(SMOLLM3, torch.float32)["decoder.layers.0.self_attention.linear_qkv.weight"]
        weights |= dict(zip(parts, stacked.split([64, 16, 16]), strict=True))
    elif mistake == "rotary embedding everywhere":
        changes = {"no_rope_layers": [1] * SMOLLM3.num_layers}
    elif mistake == "biases not grouped":
        parts = [f"model.layers.0.self_attn.{part}_proj.bias" for part in "qkv"]
        stacked = random_weights(QWEN2, torch.float32)["decoder.layers.0.self_attention.linear_qkv.bias"]
        weights |= dict(zip(parts, stacked.split([48, 24, 24]), strict=True))
    elif mistake == "query and key norms swapped":
        weights |= {name.replace("q_norm", "k_norm"): weights[name] for name in exported(model) if "q_norm" in name} | {
            name.replace("k_norm", "q_norm"): weights[name] for name in exported(model) if "k_norm" in name
        }
    kind = DocumentsTogether if mistake == "documents see each other" else TransformersNetwork
    figures = compare(megatron(model), huggingface(model, weights, kind, **changes), rows(model))
    assert not figures["passed"]
    assert figures["max_logit_difference"] > 100 * figures["tolerance"]
    assert f"logits differ by up to {figures['max_logit_difference']:.3g}" in figures["reason"]


def test_the_frequencies_of_llama_3_are_those_of_transformers() -> None:
    """Position by position: logits of 64 tokens hardly show waves of thousands."""
    model = LAYOUTS["Llama, frequencies of Llama 3.2"]
    ours = build_model(model, transformer_config(model, "torch"), "torch", 64).rotary_pos_emb.inv_freq
    config = transformers.LlamaConfig(**to_huggingface(model, SpecialIds(0, 1, 2), 64, "float32"))
    theirs = transformers.LlamaForCausalLM(config).model.rotary_emb.inv_freq
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=0)
    plain = 500_000.0 ** (-torch.arange(0, 32, 2) / 32)
    ratios = plain / theirs
    assert ratios[0] == pytest.approx(1) and ratios[-1] == pytest.approx(32)
    assert any(1.01 < ratio < 31.9 for ratio in ratios.tolist()), "one is blended"


@pytest.mark.parametrize("name", LAYOUTS)
def test_merge_undoes_split_and_the_table_covers_every_parameter(name: str) -> None:
    model = LAYOUTS[name]
    weights = random_weights(model, torch.bfloat16)
    for weight in weight_table(model):
        parts = weight.split(weights[weight.megatron], model)
        assert {name: tuple(part.shape) for name, part in parts.items()} == weight.huggingface_shapes(model)
        assert torch.equal(weight.merge(list(parts.values()), model), weights[weight.megatron])
    assert sum(tensor.numel() for tensor in weights.values()) == model.parameters


@pytest.mark.parametrize("name", ["SmolLM3, grouped", "Llama, untied", "Qwen2, tied, grouped", "Qwen3, untied, multi-head"])
def test_keys_and_shapes_are_those_that_megatron_core_stores(name: str) -> None:
    model = LAYOUTS[name]
    network = build_model(model, transformer_config(model, "torch"), "torch", 64)
    stored: dict[str, Any] = {}
    for entry in network.sharded_state_dict(metadata={"non_homogeneous_layers": True}).values():
        pieces = entry.build() if hasattr(entry, "build") else [entry]
        stored |= {piece.key: tuple(piece.global_shape) for piece in pieces}
    assert stored == {weight.megatron: weight.shape for weight in weight_table(model)}


def test_tensors_that_do_not_fit_are_named() -> None:
    expected = huggingface_shapes(LLAMA)
    found = dict(expected, **{"model.norm.weight": (7,), "model.layers.0.self_attn.q_proj.bias": (48,)})
    del found["lm_head.weight"]
    with pytest.raises(ConversionError) as fault:
        check_tensors(found, expected, "folder")
    assert "missing: lm_head.weight" in str(fault.value)
    assert "unexpected: model.layers.0.self_attn.q_proj.bias" in str(fault.value)
    assert "model.norm.weight [7] instead of [48]" in str(fault.value)
