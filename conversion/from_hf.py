"""`from-hf`: Hugging Face folder -> weights-only checkpoint, from which a run starts with `start_from`.

The checkpoint's run.yaml holds what the folder says: `model:`, and under `data:` the tokenizer (the folder itself) and the
sequence length. Weights keep the folder's dtype; the trainer casts them to the run's.
"""

import json
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor

from conversion import ConversionError
from conversion.families import from_huggingface
from conversion.safetensors_files import SafetensorsReader, check_folder
from conversion.weights import weight_table
from smol_model.config import ModelConfig
from smol_train import checkpoint
from smol_train.parallel import ParallelConfig, process_groups


def run(hf_dir: Path, folder: Path) -> None:
    """The command. Raises ConversionError, with nothing written, on anything that a checkpoint cannot hold faithfully."""
    if folder.exists():
        raise ConversionError(f"{folder} exists; give a checkpoint folder that does not, such as {folder}_new/iter_0000000")
    model, sequence_length = from_huggingface(read_config(hf_dir), source=str(hf_dir / "config.json"))
    weights = SafetensorsReader(hf_dir)
    check_folder(weights, model, str(hf_dir))
    _ = weights.dtype  # several, or one that is not a float, are refused
    mapping = {
        "model": model.model_dump(mode="json", exclude_none=True) | {"max_sequence_length": sequence_length},
        "data": {"tokenizer": str(hf_dir.resolve()), "sequence_length": sequence_length},
    }
    print(f"converting {hf_dir}: {model.parameters:,} parameters", flush=True)
    with process_groups(ParallelConfig(), seed=0):
        checkpoint.write_weights_only(folder, sharded_weights(weights, model), mapping)
    print(f"wrote {folder}")


def sharded_weights(weights: SafetensorsReader, model: ModelConfig) -> dict[str, Any]:
    """All weights under their Megatron-Core keys, each as one piece; a run with more ranks cuts them when it loads."""
    state: dict[str, Any] = {}
    for weight in weight_table(model):
        tensor = weight.merge([weights.read(name) for name in weight.huggingface], model)
        state[weight.megatron] = ShardedTensor.from_rank_offsets(weight.megatron, tensor.contiguous())
    return state


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
