"""Small models with random weights, and how the conversion tests run the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conversion.weights import weight_table
from smol_model.config import ModelConfig

VOCABULARY = 260

SMOLLM3 = ModelConfig(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=8,
    num_query_groups=2,
    vocab_size=VOCABULARY,
    no_rope=4,
)
LLAMA = ModelConfig(
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=80,
    num_attention_heads=4,
    num_query_groups=4,
    vocab_size=VOCABULARY,
    tie_embeddings=False,
    rope_theta=10_000,
)
QWEN3 = ModelConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=8,
    num_query_groups=2,
    head_dim=16,
    vocab_size=VOCABULARY,
    rope_theta=1_000_000,
    qk_norm=True,
)
QWEN2 = LLAMA.model_copy(update={"tie_embeddings": True, "num_query_groups": 2, "qkv_bias": True})


class Run(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]


def random_weights(model: ModelConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights by their key on disk; larger than a fresh model's, so that every part shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for weight in weight_table(model):
        drawn = torch.randn(weight.shape, generator=generator)
        weights[weight.megatron] = (1 + 0.1 * drawn if len(weight.shape) == 1 else 0.1 * drawn).to(dtype)
    return weights


def save_checkpoint(
    folder: Path,
    model: ModelConfig,
    dtype: torch.dtype,
    tokenizer: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """A whole checkpoint of a network that Megatron-Core built, sequence length 64; random weights unless they are given."""
    from smol_model.spec import build_model, transformer_config
    from smol_train import checkpoint
    from smol_train.parallel import ParallelConfig, process_groups

    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    with process_groups(ParallelConfig(), seed=0):
        network = build_model(model, transformer_config(model, "torch", precision), "torch", sequence_length=64)
        load(network, weights or random_weights(model, dtype))
        state = network.sharded_state_dict(metadata={"non_homogeneous_layers": True})
        checkpoint.write_weights_only(folder, state, run_mapping(model, tokenizer))
    return folder


def save_split_checkpoint(folder: Path, tokenizer: Path, model: ModelConfig) -> None:
    """On each of four ranks: `model` in fp32 with random initial weights, over two tensor-parallel ranks and two stages."""
    from megatron.core import parallel_state

    from smol_model.spec import build_model, transformer_config
    from smol_train import checkpoint
    from smol_train.parallel import ParallelConfig, process_groups

    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    model = model.model_copy(update={"init_std": 0.1})
    with process_groups(ParallelConfig(tensor=2, pipeline=2), seed=0):
        ends = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
        network = build_model(model, transformer_config(model, "torch", **sizes), "torch", 64, *ends)
        state = network.sharded_state_dict(metadata={"non_homogeneous_layers": True})
        checkpoint.write_weights_only(folder, state, run_mapping(model, tokenizer))


def run_mapping(model: ModelConfig, tokenizer: Path) -> dict[str, Any]:
    """What run.yaml of these checkpoints holds."""
    data = {"tokenizer": str(tokenizer), "sequence_length": 64}
    return {"model": model.model_dump(mode="json", exclude_none=True), "data": data}


def figures(folder: Path) -> dict[str, Any]:
    """Contents of an export's parity.json."""
    contents: dict[str, Any] = json.loads((folder / "parity.json").read_text())
    return contents


_IN_MEMORY = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""The torch backend's names of what the disk has under the te backend's."""


def load(network: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put weights, by their key on disk, into a network of the torch backend."""
    renamed = {}
    for key, tensor in weights.items():
        for on_disk, in_memory in _IN_MEMORY.items():
            key = key.replace(on_disk, in_memory)
        renamed[key] = tensor
    network.load_state_dict(renamed)
