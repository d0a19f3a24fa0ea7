"""There and back for every family, byte for byte: a folder that transformers wrote, Megatron-Core's ranks, the folder again."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from ranks import Ranks
from round_trip_jobs import save_again
from small_models import Command

from conversion.__main__ import main
from smol_train.checkpoint_folder import read_model_config

SIZES = {"vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}  # four of them and four layers go into every layout
COMMON = {**SIZES, **HEADS, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLAMA_3_2 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3_2 |= {"rope_theta": 500_000.0, "original_max_position_embeddings": 8192}

MODELS = {
    "SmolLM3": (transformers.SmolLM3Config(**COMMON, tie_word_embeddings=True), torch.bfloat16),
    "Llama": (transformers.LlamaConfig(**COMMON, tie_word_embeddings=False), torch.float32),
    "Llama 3.2": (
        transformers.LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=LLAMA_3_2),
        torch.bfloat16,
    ),
    "Qwen2": (transformers.Qwen2Config(**COMMON, tie_word_embeddings=True), torch.bfloat16),
    "Qwen3": (transformers.Qwen3Config(**COMMON, tie_word_embeddings=False, head_dim=16), torch.bfloat16),
}
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)]
"""Tensor-parallel ranks and pipeline stages."""


@dataclass(frozen=True)
class Imported:
    """A folder that transformers wrote and the checkpoint that from-hf made of it."""

    folder: Path
    checkpoint: Path
    precision: str


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> dict[str, Imported]:
    """Every family: random weights, norms and biases too, so that no two tensors could change places unseen."""
    made = {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(byte_tokenizer)
    for name, (config, dtype) in MODELS.items():
        root = tmp_path_factory.mktemp("imported")
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)
        model.to(dtype).save_pretrained(root / "hf")
        tokenizer.save_pretrained(root / "hf")
        assert main(["from-hf", str(root / "hf"), str(root / "iter_0000000")]) == 0
        made[name] = Imported(root / "hf", root / "iter_0000000", "fp32" if dtype == torch.float32 else "bf16")
    return made


def came_back(command: Command, checkpoint: Path, target: Path, one: Imported) -> bool:
    """Whether the checkpoint's export has the weight file that transformers wrote."""
    ran = command("to-hf", checkpoint, target, "--dtype", one.precision)
    assert ran.code == 0, ran.err
    return (target / "model.safetensors").read_bytes() == (one.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers_comes_back_through_the_commands(
    name: str, imported: dict[str, Imported], tmp_path: Path, command: Command
) -> None:
    one = imported[name]
    assert came_back(command, one.checkpoint, tmp_path / "hf", one)
    ours, theirs = (transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (tmp_path / "hf", one.folder))
    unlike = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    # The last two are read by nothing where there is no window, and where the products are not split.
    assert unlike <= {"_name_or_path", "max_window_layers", "pretraining_tp"}


@pytest.mark.parametrize(("tensor", "pipeline"), LAYOUTS)
def test_what_the_ranks_of_a_layout_hold_is_the_folder_byte_for_byte(
    tensor: int, pipeline: int, imported: dict[str, Imported], ranks: Ranks, tmp_path: Path, command: Command
) -> None:
    saved = {one.checkpoint: tmp_path / name / "iter_0000000" for name, one in imported.items()}
    precisions = {one.checkpoint: one.precision for one in imported.values()}
    held = ranks.run(save_again, tensor * pipeline, checkpoints=saved, tensor=tensor, pipeline=pipeline, precisions=precisions)
    for number, (name, one) in enumerate(imported.items()):
        parameters = read_model_config(one.checkpoint).parameters
        assert all(counts[number] < 1.5 * parameters / (tensor * pipeline) for counts in held), "each rank holds a part"
        assert came_back(command, saved[one.checkpoint], tmp_path / name / "hf", one), name
