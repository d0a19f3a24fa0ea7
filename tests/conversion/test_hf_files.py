"""Weight files: byte for byte what the official library writes, read back by it, and damage found."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion import ConversionError
from conversion.safetensors_files import SafetensorsReader, SafetensorsWriter, plan_shards

SHAPES = {"b.weight": (3, 5), "a.weight": (7,), "layers.10.w": (2, 2), "layers.9.w": (4, 1)}


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def write(folder: Path, content: dict[str, torch.Tensor], dtype: torch.dtype, shard_bytes: int = 10**6) -> list[str]:
    with SafetensorsWriter(folder, SHAPES, dtype, shard_bytes) as writer:
        for name in reversed(SHAPES):  # in any order
            writer.write(name, content[name])
    return list(writer.files)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_file_equals_the_official_librarys(tmp_path: Path, dtype: torch.dtype) -> None:
    assert write(tmp_path, tensors(dtype), dtype) == ["model.safetensors"]
    save_file(tensors(dtype), tmp_path / "official.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "official.safetensors").read_bytes()
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_several_files_hold_every_tensor_once(tmp_path: Path) -> None:
    content = tensors(torch.float32)
    files = write(tmp_path, content, torch.float32, shard_bytes=50)
    assert files == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    read = {name: (file, tensor) for file in files for name, tensor in load_file(tmp_path / file).items()}
    assert {name: file for name, (file, _) in read.items()} == {
        "b.weight": files[0],  # 60 bytes: larger than a file may be, so alone
        "a.weight": files[1],
        "layers.10.w": files[1],
        "layers.9.w": files[2],
    }
    assert all(torch.equal(tensor, content[name]) for name, (_, tensor) in read.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 120}, "weight_map": {name: file for name, (file, _) in read.items()}}
    reader = SafetensorsReader(tmp_path)
    assert (reader.shapes, reader.dtype) == (SHAPES, torch.float32)
    assert all(torch.equal(reader.read(name), content[name]) for name in SHAPES)


def test_tensors_are_rounded_to_the_files_dtype(tmp_path: Path) -> None:
    content = tensors(torch.float32)
    write(tmp_path, content, torch.bfloat16)
    assert all(
        torch.equal(tensor, content[name].bfloat16()) for name, tensor in load_file(tmp_path / "model.safetensors").items()
    )


def test_a_tensor_forgotten_or_of_another_shape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'b.weight'.* announced and not written"):
        SafetensorsWriter(tmp_path, {"b.weight": (2,)}, torch.float32, 100).__enter__().__exit__(None, None, None)
    with (
        pytest.raises(ValueError, match=r"shape \[3\]; announced was \[2\]"),
        SafetensorsWriter(tmp_path, {"b.weight": (2,)}, torch.float32, 100) as writer,
    ):
        writer.write("b.weight", torch.zeros(3))


def test_a_plan_keeps_the_order_and_the_limit() -> None:
    assert plan_shards({"a": (4,), "b": (4,), "c": (4,)}, torch.float32, 32) == {
        "model-00001-of-00002.safetensors": ["a", "b"],
        "model-00002-of-00002.safetensors": ["c"],
    }


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"holds neither model\.safetensors nor"):
        SafetensorsReader(tmp_path)
    files = write(tmp_path, tensors(torch.float32), torch.float32, shard_bytes=50)
    (tmp_path / files[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(ConversionError, match=f"lacks {files[1]}, which"):
        SafetensorsReader(tmp_path)
    (tmp_path / files[1]).write_bytes((tmp_path / "elsewhere").read_bytes()[:-1])
    with pytest.raises(ConversionError, match=f"{files[1]} cannot be read"):
        SafetensorsReader(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConversionError, match="is not an index of weight files"):
        SafetensorsReader(tmp_path)


@pytest.mark.parametrize("mixed", [True, False])
def test_dtypes_that_are_not_one_float_are_refused(tmp_path: Path, mixed: bool) -> None:
    second = torch.zeros(2, dtype=torch.bfloat16 if mixed else torch.int8)
    first = torch.zeros(2, dtype=torch.float32 if mixed else torch.int8)
    save_file({"a": first, "b": second}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="holds tensors of dtype " + ("BF16, F32" if mixed else "I8")):
        _ = SafetensorsReader(tmp_path).dtype
