"""Hugging Face weight files: a writer that streams tensors to their places, a reader that opens only what is asked for.

A safetensors file is, byte by byte:

    8 bytes      length of the header, little-endian
    the header   JSON, padded with blanks so that data begins at a multiple of 8:
                 {"__metadata__": {"format": "pt"}, NAME: {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ..}
    the data     tensors without gaps, little-endian, row-major; offsets count from here

Names stand in alphabetical order, as the official library writes them: the files are the same, byte for byte. All sizes
are known from the model's configuration, so headers are written first and each tensor goes to its place when it comes.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from conversion import ConversionError
from conversion.weights import Shape, check_tensors, huggingface_shapes
from smol_model.config import ModelConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What --dtype means."""
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def plan_shards(shapes: Mapping[str, Shape], dtype: torch.dtype, shard_bytes: int) -> dict[str, list[str]]:
    """File name -> tensor names: filled in the given order, a tensor larger than `shard_bytes` has a file of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}


class SafetensorsWriter:
    """Writes a model's weight files into `folder`; a context manager.

    `shapes` lists every tensor beforehand. write() takes them in any order; leaving the context without an error checks
    that none was forgotten, writes the index where there are several files, and has everything on the disk.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, shard_bytes: int) -> None:
        self.dtype, self._folder, self._shapes = dtype, folder, dict(shapes)
        self.files = plan_shards(shapes, dtype, shard_bytes)
        self._open: dict[str, BinaryIO] = {}
        self._places: dict[str, tuple[BinaryIO, int]] = {}

    def __enter__(self) -> Self:
        for file_name, names in self.files.items():
            self._open[file_name] = file = (self._folder / file_name).open("wb")
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            ends: dict[str, int] = {}
            end = 0
            for name in sorted(names):
                begin, end = end, end + math.prod(self._shapes[name]) * self.dtype.itemsize
                shape = list(self._shapes[name])
                header[name] = {"dtype": _CODES[self.dtype], "shape": shape, "data_offsets": [begin, end]}
                ends[name] = begin
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
            self._places |= {name: (file, 8 + len(text) + begin) for name, begin in ends.items()}
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, rounded to the files' dtype; once per name."""
        if tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; announced was {list(self._shapes[name])}")
        file, place = self._places.pop(name)
        file.seek(place)
        file.write(tensor.detach().to(self.dtype).contiguous().view(torch.uint8).numpy().data)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.ExitStack() as stack:
            for file in self._open.values():
                stack.enter_context(file)
            if kind is not None:
                return
            if self._places:
                raise ValueError(f"tensors {sorted(self._places)} were announced and not written")
            for file in self._open.values():
                file.flush()
                os.fsync(file.fileno())
        if len(self.files) > 1:
            size = sum(math.prod(shape) for shape in self._shapes.values()) * self.dtype.itemsize
            places = {name: file_name for file_name, names in self.files.items() for name in names}
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            (self._folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")


class SafetensorsReader:
    """The tensors of a Hugging Face folder, in one file or several; each is read when it is asked for.

    Raises ConversionError for a folder without safetensors files, with one missing, or with a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, Shape] = {}
        """Shape of every tensor, from the headers."""
        self.codes: dict[str, str] = {}
        """The file format's name of every tensor's dtype, such as BF16."""
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self.files = [folder / name for name in _weight_files(folder)]
        for path in self.files:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  not a mapping
                        part = file.get_slice(name)
                        self.shapes[name], self._paths[name] = tuple(part.get_shape()), path
                        self.codes[name] = part.get_dtype()
            except (SafetensorError, OSError) as error:
                raise ConversionError(f"{path} cannot be read ({error}); fetch or write it again") from error

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of all tensors; raises ConversionError where there are several or one that is not for weights."""
        codes = set(self.codes.values())
        known = [dtype for dtype, code in _CODES.items() if {code} == codes]
        if not known:
            raise ConversionError(
                f"{self._folder} holds tensors of dtype {', '.join(sorted(codes))}; save it in one of bf16, fp16, fp32"
            )
        return known[0]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """One tensor, or some rows of it, on the CPU in its stored dtype; its memory is the file's, mapped."""
        # Opened anew: what was read through one mapping stays in memory until that is closed.
        with safe_open(self._paths[name], framework="pt") as file:
            tensor: Tensor = file.get_slice(name)[rows] if rows else file.get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[str]:
    """The folder's weight files; an index, where there is one, decides."""
    index = folder / _INDEX
    if not index.is_file():
        if not (folder / _SINGLE).is_file():
            raise ConversionError(
                f"{folder} holds neither {_SINGLE} nor {_INDEX}; give a folder that transformers' save_pretrained wrote"
            )
        return [_SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} is not an index of weight files ({error}); fetch or write it again") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ConversionError(f"{folder} lacks {', '.join(missing)}, which {_INDEX} names; fetch or write them again")
    return names


def check_folder(weights: SafetensorsReader, model: ModelConfig, where: str) -> None:
    """Raise ConversionError when the tensors of folder `where` are not those of `model`.

    A tied head may lie there once more, as in some published folders, if it is the embedding bit for bit.
    """
    found = dict(weights.shapes)
    if model.tie_embeddings and _EMBEDDING in found:
        check_tied_head(weights, where)
        found.pop(_HEAD, None)
    check_tensors(found, huggingface_shapes(model), where)


def check_tied_head(weights: SafetensorsReader, where: str) -> None:
    """Raise ConversionError when the head of folder `where`, whose configuration ties it, is there and is not the embedding."""
    if not {_EMBEDDING, _HEAD} <= weights.shapes.keys():
        return
    if not torch.equal(weights.read(_HEAD), weights.read(_EMBEDDING)):
        raise ConversionError(
            f"{where}: {_HEAD} differs from {_EMBEDDING}, but its configuration ties them (tie_word_embeddings=true); "
            "correct config.json if the model has a head of its own"
        )
