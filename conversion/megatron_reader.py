"""A checkpoint's weights, one tensor at a time: no model is built, no process group started, memory is one tensor.

Tensors lie in pieces, one for each rank that saved, each a torch.save() somewhere in a file; torch.distributed.checkpoint's
metadata says where. The optimizer's tensors, which share the folder, are left alone.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from conversion import ConversionError
from conversion.weights import Shape, check_tensors, weight_table
from smol_model.config import ModelConfig

_WEIGHTS = ("embedding.", "decoder.", "output_layer.")
"""Beginnings of the keys that are weights; the optimizer's begin otherwise."""


class MegatronReader:
    """The weights of one whole checkpoint folder that holds `model`.

    Raises ConversionError when the folder is unreadable or its weights do not fit the weight table of `model`.
    """

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self._folder = folder
        self._files = FileSystemReader(folder)
        try:
            metadata = self._files.read_metadata()  # once: with an optimizer's state it is megabytes of pickle
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ConversionError(f"checkpoint {folder} has no readable .metadata file ({error}); use another one") from error
        self._places = metadata.storage_data
        expected = {weight.megatron: weight.shape for weight in weight_table(model)}
        self._entries = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and key.startswith(_WEIGHTS)
        }
        self.shapes: dict[str, Shape] = {key: tuple(entry.size) for key, entry in self._entries.items()}
        self.dtypes = {key: entry.properties.dtype for key, entry in self._entries.items()}
        check_tensors(self.shapes, expected, f"checkpoint {folder}")

    def read(self, key: str) -> Tensor:
        """The whole tensor of `key` on the CPU, in its stored dtype; raises ConversionError when its files are damaged."""
        entry = self._entries[key]
        try:
            if len(entry.chunks) == 1:
                return self._piece(key, entry.chunks[0])
            tensor = torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
            for chunk in entry.chunks:
                place = tuple(slice(begin, begin + size) for begin, size in zip(chunk.offsets, chunk.sizes, strict=True))
                tensor[place] = self._piece(key, chunk)
            return tensor
        except Exception as error:  # damaged bytes raise whatever the code that they lead to raises
            raise ConversionError(
                f"checkpoint {self._folder}: {key} cannot be read ({_last(error)}); use another one"
            ) from error

    def _piece(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        place = self._places[MetadataIndex(key, chunk.offsets)]
        with (self._folder / place.relative_path).open("rb") as file:
            piece: Tensor = torch.load(self._files._slice_file(file, place), map_location="cpu", weights_only=True)
        if piece.shape != chunk.sizes:
            raise ValueError(f"a piece has shape {list(piece.shape)} instead of {list(chunk.sizes)}")
        return piece


def _last(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
