"""`from-hf`: Hugging Face folder -> weights-only checkpoint, from which a run starts with `start_from`.

Tensors are read when they are written, one by each of the two processes that write. The checkpoint's run.yaml holds what
the folder says: `model:`, and under `data:` the tokenizer (the folder itself) and the sequence length. Weights keep the
folder's dtype; the trainer casts them to the run's.
"""

import json
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from conversion import ConversionError, tokenizer_files
from conversion.families import from_huggingface
from conversion.safetensors_files import SafetensorsReader, check_folder
from conversion.weights import check_finite, weight_table
from smol_model.config import ModelConfig
from smol_train import checkpoint
from smol_train.parallel import ParallelConfig, process_groups


def run(hf_dir: Path, folder: Path, allow_nan: bool = False) -> None:
    """The command. Raises ConversionError, with nothing written, on anything that a checkpoint cannot hold faithfully."""
    if folder.exists():
        raise ConversionError(f"{folder} exists; give a checkpoint folder that does not, such as {folder}_new/iter_0000000")
    model, sequence_length = from_huggingface(read_config(hf_dir), source=str(hf_dir / "config.json"))
    weights = SafetensorsReader(hf_dir)
    check_folder(weights, model, str(hf_dir))
    _ = weights.dtype  # several, or one that is not a float, are refused
    if tokenizer_files.files(hf_dir):
        tokenizer_files.load(hf_dir, model.vocab_size, remedy="put the one that the model was trained with there")
    if not allow_nan:
        for name in weights.shapes:
            check_finite(weights.read(name), name, str(hf_dir))
    mapping = {
        "model": model.model_dump(mode="json", exclude_none=True) | {"max_sequence_length": sequence_length},
        "data": {"tokenizer": str(hf_dir.resolve()), "sequence_length": sequence_length},
    }
    print(f"converting {hf_dir}: {model.parameters:,} parameters", flush=True)
    with process_groups(ParallelConfig(), seed=0):
        write_weights(weights, model, folder, mapping)
    print(f"wrote {folder}")


def write_weights(weights: SafetensorsReader, model: ModelConfig, folder: Path, mapping: dict[str, Any]) -> None:
    """All weights under their Megatron-Core keys, each as one piece; a run with more ranks cuts them when it loads."""
    table = {weight.megatron: weight for weight in weight_table(model)}

    def read(key: str) -> Tensor:
        return table[key].merge([weights.read(name) for name in table[key].huggingface], model)

    planned = {
        key: ShardedTensor.from_rank_offsets(key, torch.empty(weight.shape, dtype=weights.dtype, device="meta"))
        for key, weight in table.items()
    }
    checkpoint.write_weights_only(folder, planned, mapping, read)


def read_config(hf_dir: Path) -> dict[str, Any]:
    """The folder's config.json; raises ConversionError when there is none that can be read."""
    path = hf_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror}); give a Hugging Face model's folder") from error
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON ({error}); fetch or write it again") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path} holds {type(config).__name__}, not a mapping; fetch or write it again")
    return config
