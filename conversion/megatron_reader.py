"""A checkpoint's weights, one tensor at a time: no model is built, no process group started, memory is one tensor.

Tensors lie in pieces, one for each rank that saved; torch.distributed.checkpoint joins them. The optimizer's tensors,
which share the folder, are left alone.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from conversion import ConversionError
from conversion.weights import Shape, check_tensors, weight_table
from smol_model.config import ModelConfig

_WEIGHTS = ("embedding.", "decoder.", "output_layer.")
"""Beginnings of the keys that are weights; the optimizer's begin otherwise."""


class _Reader(dcp.FileSystemReader):
    """FileSystemReader that reads its metadata once: with an optimizer's state it is megabytes of pickle."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = super().read_metadata(*args, **kwargs)
        return self._metadata


class MegatronReader:
    """The weights of one whole checkpoint folder that holds `model`.

    Raises ConversionError when the folder is unreadable or its weights do not fit the weight table of `model`.
    """

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self._folder = folder
        self._reader = _Reader(folder)
        try:
            entries = self._reader.read_metadata().state_dict_metadata
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ConversionError(f"checkpoint {folder} has no readable .metadata file ({error}); use another one") from error
        expected = {weight.megatron: weight.shape for weight in weight_table(model)}
        self._entries = {
            key: entry
            for key, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and key.startswith(_WEIGHTS)
        }
        found: dict[str, Shape] = {key: tuple(entry.size) for key, entry in self._entries.items()}
        check_tensors(found, expected, f"checkpoint {folder}")

    def read(self, key: str) -> Tensor:
        """The whole tensor of `key` on the CPU, in its stored dtype; raises ConversionError when its files are damaged."""
        entry = self._entries[key]
        tensor = torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
        try:
            dcp.load({key: tensor}, storage_reader=self._reader, no_dist=True)
        except (CheckpointException, OSError) as error:  # the first, a BaseException, wraps whatever a damaged file raises
            raise ConversionError(
                f"checkpoint {self._folder}: {key} cannot be read ({_last(error)}); use another one"
            ) from error
        return tensor


def _last(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
