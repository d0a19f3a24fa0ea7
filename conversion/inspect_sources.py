"""What `inspect` reads: a checkpoint or a Hugging Face folder as metadata and named tensors, each read when it is asked for.

    iter_0001000, RUN      a checkpoint, or a run's newest: state.json, run.yaml, weights under Megatron-Core's keys
    HF_DIR                 config.json, parity.json, weights under Hugging Face names
    as_huggingface(..)     a checkpoint under Hugging Face names, cut by the weight table and rounded as a folder is

The optimizer's tensors are not read.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from conversion import ConversionError
from conversion.families import from_huggingface, yarn_factor_of
from conversion.from_hf import read_config
from conversion.megatron_reader import MegatronReader
from conversion.safetensors_files import SafetensorsReader
from conversion.weights import Shape, weight_table
from smol_model.config import ModelConfig
from smol_train.checkpoint_folder import (
    MARKER,
    bytes_on_disk,
    read_model_config,
    read_run_mapping,
    read_state,
    whole_checkpoints,
)
from smol_train.checkpoint_integrity import find
from smol_train.sections.run import Verify

_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""torch's names of the file format's; others, which are not for weights, are shown as they are."""


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read."""

    shape: Shape
    dtype: str
    """torch's name, such as bfloat16."""


@dataclass(frozen=True)
class Source:
    """One side of an inspection."""

    path: Path
    kind: Literal["checkpoint", "huggingface"]
    bytes: int
    """Size of the folder's files."""
    metadata: dict[str, Any]
    """Of a checkpoint `state` (state.json) and `run` (run.yaml); of a folder `config`, `generation_config`, `parity`, `merge`
    (its .json files; None where there is none) and `files` (bytes by name)."""
    tensors: dict[str, Entry]
    read: Callable[[str], Tensor]
    """The whole tensor of a name, on the CPU; raises ConversionError when its file is damaged."""


def open_source(path: Path, verify: Verify) -> Source:
    """What lies at `path`; of a checkpoint, sizes or hashes of all files are compared with its listing first.

    Raises ConversionError or CheckpointError for what is neither, or damaged.
    """
    if not path.is_dir():
        raise ConversionError(f"{path} is not a folder; give a checkpoint, a run's folder or a Hugging Face folder")
    if (path / MARKER).exists() or re.match(r"iter_\d", path.name) or whole_checkpoints(path):
        return _checkpoint(find(path, verify))
    if (path / "config.json").exists() or any(path.glob("*.safetensors*")):
        return _folder(path)
    raise ConversionError(
        f"{path} holds neither a checkpoint (iter_*, or the files of one) nor a Hugging Face model (config.json and "
        f"safetensors files); give a folder that does"
    )


def _checkpoint(folder: Path) -> Source:
    reader = MegatronReader(folder, read_model_config(folder))
    metadata = {"state": asdict(read_state(folder)), "run": read_run_mapping(folder)}
    names = [weight.megatron for weight in weight_table(read_model_config(folder))]
    tensors = {name: Entry(reader.shapes[name], _name(reader.dtypes[name])) for name in names}
    return Source(folder, "checkpoint", bytes_on_disk(folder), metadata, tensors, reader.read)


def _folder(path: Path) -> Source:
    config = read_config(path)
    reader = SafetensorsReader(path)
    files = {str(file.relative_to(path)): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    metadata = {name: _json_of(path / f"{name}.json") for name in ("generation_config", "parity", "merge")}
    names = sorted(reader.shapes, key=_by_layer)
    tensors = {name: Entry(reader.shapes[name], _FLOATS.get(reader.codes[name], reader.codes[name])) for name in names}

    def read(name: str) -> Tensor:
        try:
            return reader.read(name)
        except (SafetensorError, OSError, ValueError, AttributeError) as error:  # a dtype that torch lacks among them
            raise ConversionError(f"{path}: {name} cannot be read ({error}); fetch or write it again") from error

    return Source(path, "huggingface", sum(files.values()), {"config": config, **metadata, "files": files}, tensors, read)


def as_huggingface(checkpoint: Source, like: Mapping[str, Entry]) -> Source:
    """A checkpoint with its tensors under Hugging Face names, each rounded to the dtype of its namesake in `like`, a float."""
    model = model_of(checkpoint)
    tensors, rows = {}, {}
    for weight in weight_table(model):
        for name, shape in weight.huggingface_shapes(model).items():
            stored = checkpoint.tensors[weight.megatron].dtype
            rounded = name in like and like[name].dtype in _FLOATS.values()
            tensors[name] = Entry(shape, like[name].dtype if rounded else stored)
            rows[name] = weight
    parts: dict[str, Tensor] = {}
    """What the Megatron-Core tensor that was read last was cut into: neighbours come from one."""

    def read(name: str) -> Tensor:
        if name not in parts:
            parts.clear()
            parts.update(rows[name].split(checkpoint.read(rows[name].megatron), model))
        return parts[name].to(getattr(torch, tensors[name].dtype))

    return replace(checkpoint, tensors=tensors, read=read)


def model_of(checkpoint: Source) -> ModelConfig:
    """The architecture that a checkpoint's run.yaml describes."""
    return read_model_config(checkpoint.path)


def architecture(source: Source) -> dict[str, Any]:
    """What decides which function the weights compute, in the same words for a checkpoint and for a folder.

    Raises ConversionError for a folder of another architecture than those of the weight table.
    """
    if source.kind == "checkpoint":
        model = model_of(source)
        length, yarn = (source.metadata["run"].get("data") or {}).get("sequence_length"), 1.0
    else:
        config = dict(source.metadata["config"])
        yarn = yarn_factor_of(config)
        if yarn > 1:  # which the model itself does not have
            theta = config["rope_parameters"]["rope_theta"]
            config |= {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "rope_scaling": None}
        model, longest = from_huggingface(config, source=str(source.path / "config.json"))
        length = int(longest / yarn)
    settings = model.model_dump(mode="json", exclude={"max_sequence_length", "no_rope", "z_loss"})
    settings |= {"num_query_groups": model.query_groups, "head_dim": model.kv_channels}
    return settings | {"layers_without_rope": model.layers_without_rope, "sequence_length": length, "yarn": yarn}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by_layer(name: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _json_of(path: Path) -> Any:
    """A side file's contents; None where there is none, a sentence where it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
