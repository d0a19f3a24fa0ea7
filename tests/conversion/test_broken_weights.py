"""Weights that are no numbers, and disks without room: refused by name, nothing left behind."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from save_jobs import fill, small_disk
from small_models import SMOLLM3, Command, figures, random_weights, save_checkpoint

from conversion import ConversionError
from conversion.weights import check_finite, is_finite

KEY, NAME = "decoder.layers.1.mlp.linear_fc2.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def broken_checkpoint(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    """smollm3_checkpoint with one NaN and one infinity."""
    weights = random_weights(SMOLLM3, torch.bfloat16)
    weights[KEY][3, 5], weights[KEY][4, 6] = float("nan"), float("inf")
    folder = tmp_path_factory.mktemp("broken") / "iter_0000000"
    return save_checkpoint(folder, SMOLLM3, torch.bfloat16, byte_tokenizer, weights)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 100 kB."""
    try:
        with small_disk(tmp_path / "disk", mebibytes=1) as folder:
            fill(folder, leaving=100_000)
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))


def test_weights_that_are_no_numbers_are_refused_by_name(broken_checkpoint: Path, tmp_path: Path, command: Command) -> None:
    ran = command("to-hf", broken_checkpoint, tmp_path / "hf")
    assert ran.code == 2 and f"checkpoint {broken_checkpoint}: {KEY} holds NaN or Inf" in ran.err
    assert not list(tmp_path.iterdir())


def test_broken_weights_are_converted_both_ways_when_asked_for(
    broken_checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    assert command("to-hf", broken_checkpoint, tmp_path / "hf", "--allow-nan").code == 0
    written = load_file(tmp_path / "hf" / "model.safetensors")[NAME]
    assert written[3, 5].isnan() and written[4, 6].isinf() and int((~written.isfinite()).sum()) == 2
    assert figures(tmp_path / "hf")["passed"], "broken alike"

    ran = command("from-hf", tmp_path / "hf", tmp_path / "iter_0000000")
    assert ran.code == 2 and f"{tmp_path / 'hf'}: {NAME} holds NaN or Inf" in ran.err
    assert not (tmp_path / "iter_0000000").exists()
    assert command("from-hf", tmp_path / "hf", tmp_path / "iter_0000000", "--allow-nan").code == 0
    assert command("to-hf", tmp_path / "iter_0000000", tmp_path / "again", "--allow-nan").code == 0
    both = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("hf", "again")]
    assert both[0] == both[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_value_among_many_is_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(70, 130).to(dtype)
    assert is_finite(tensor)
    check_finite(tensor, "name", "folder")
    tensor[69, 11] = value
    with pytest.raises(ConversionError, match="folder: name holds NaN or Inf"):
        check_finite(tensor, "name", "folder")


def test_an_export_without_room_leaves_nothing(smollm3_checkpoint: Path, disk: Path, command: Command) -> None:
    ran = command("to-hf", smollm3_checkpoint, disk / "hf")
    assert ran.code == 2 and f"{disk / 'hf'} was not made" in ran.err and os.strerror(errno.ENOSPC) in ran.err
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_an_import_without_room_leaves_nothing(smollm3_export: Path, disk: Path, command: Command) -> None:
    ran = command("from-hf", smollm3_export, disk / "iter_0000000")
    assert ran.code == 2 and "is not saved" in ran.err and os.strerror(errno.ENOSPC) in ran.err
    assert [path.name for path in disk.iterdir()] == ["filler"]
