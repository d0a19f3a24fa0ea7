"""inspect PATH PATH: how two checkpoints or folders differ, in bits, values and configuration."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from inspect_parts import _tensors, as_json, change, last, spoil
from small_models import SMOLLM3, Command, save_checkpoint

from conversion.megatron_reader import MegatronReader
from conversion.weights import weight_table


@pytest.fixture
def folder(smollm3_export: Path, tmp_path: Path) -> Path:
    """A copy of smollm3_export to spoil."""
    return Path(shutil.copytree(smollm3_export, tmp_path / "folder"))


def test_two_checkpoints_differ_where_they_do(
    smollm3_checkpoint: Path, checkpoint: Path, tmp_path: Path, byte_tokenizer: Path, command: Command
) -> None:
    ran = command("inspect", smollm3_checkpoint, checkpoint)
    assert (ran.code, last(ran.out)) == (0, "EQUAL: all 26 tensors are the same, bit for bit")
    assert "metadata" not in ran.out
    change(checkpoint, step=20, layout={"tensor": 2})
    found = as_json(command, smollm3_checkpoint, checkpoint)
    assert found["metadata"] == {"state.step": [0, 20], "state.layout.tensor": [None, 2]}
    assert found["equal"] is True

    other = SMOLLM3.model_copy(update={"num_layers": 5, "vocab_size": 264, "no_rope": None})
    save_checkpoint(tmp_path / "iter_0000009", other, torch.bfloat16, byte_tokenizer)
    ran = command("inspect", smollm3_checkpoint, tmp_path / "iter_0000009")
    assert ran.code == 0 and re.search(r"^run.model.num_layers +4 +5$", ran.out, re.M)
    assert "only in B: decoder.layers.4.self_attention.linear_qkv.weight, " in ran.out and "only in A" not in ran.out
    assert "[260, 64] / [264, 64]" in ran.out
    assert last(ran.out) == "DIFFERENT: 26 of 26 tensors in both are not equal; 6 are on one side only"
    found = as_json(command, smollm3_checkpoint, tmp_path / "iter_0000009")
    embedding = found["tensors"]["embedding.word_embeddings.weight"]
    assert embedding == {"shapes": [[260, 64], [264, 64]], "dtypes": ["bfloat16", "bfloat16"]} and found["equal"] is False


def test_a_checkpoint_equals_its_export_and_one_bit_is_found(
    smollm3_checkpoint: Path, folder: Path, llama_checkpoint: Path, llama_export: Path, command: Command
) -> None:
    verdict = "EQUAL: all 38 tensors are the same, bit for bit after the checkpoint's were rounded to the folder's dtype"
    for paths in ((smollm3_checkpoint, folder), (folder, smollm3_checkpoint)):
        ran = command("inspect", *paths)
        assert (ran.code, last(ran.out)) == (0, verdict)
        assert "metadata" not in ran.out
    assert command("inspect", llama_checkpoint, llama_export).out.count("EQUAL: ") == 1
    name = "model.layers.3.self_attn.v_proj.weight"
    value = _tensors(folder)[name].view(-1)[77]
    spoil(folder, name, {77: float(torch.nextafter(value, torch.tensor(9.0, dtype=torch.bfloat16)))})
    found = as_json(command, smollm3_checkpoint, folder)
    unequal = {key: tensor for key, tensor in found["tensors"].items() if not tensor["equal"]}
    assert list(unequal) == [name] and 0 < unequal[name]["max_difference"] < 0.01 and found["equal"] is False
    norm = float(_tensors(folder)[name].double().norm())
    assert unequal[name]["relative_difference"] == pytest.approx(unequal[name]["max_difference"] / norm, rel=1e-3)
    ran = command("inspect", smollm3_checkpoint, folder)
    assert last(ran.out).startswith("DIFFERENT: 1 of 38 tensors in both are not equal")


def test_each_tensor_of_a_checkpoint_is_read_once(
    smollm3_checkpoint: Path, smollm3_export: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is cut into several of a folder, between which the folder's order puts others."""
    keys: list[str] = []
    read = MegatronReader.read
    monkeypatch.setattr(MegatronReader, "read", lambda reader, key: keys.append(key) or read(reader, key))
    for paths in ((smollm3_checkpoint, smollm3_export), (smollm3_export, smollm3_checkpoint)):
        keys.clear()
        assert command("inspect", *paths).code == 0
        assert sorted(keys) == sorted(weight.megatron for weight in weight_table(SMOLLM3))


def test_a_checkpoint_is_rounded_to_the_folders_dtype(
    llama_checkpoint: Path, tmp_path: Path, llama_export: Path, command: Command
) -> None:
    assert command("to-hf", llama_checkpoint, tmp_path / "hf", "--dtype", "bf16").code == 0
    assert as_json(command, llama_checkpoint, tmp_path / "hf")["equal"] is True
    ran = command("inspect", llama_export, tmp_path / "hf", "--tensors")
    assert ran.code == 0 and "float32 / bfloat16" in ran.out and last(ran.out).startswith("DIFFERENT: 21 of 21 tensors")
    assert "config.dtype" in ran.out


def test_another_configuration_is_found_where_the_tensors_are_equal(
    smollm3_checkpoint: Path, folder: Path, command: Command
) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 10_000.0
    config["no_rope_layers"] = [1, 1, 1, 1]
    path.write_text(json.dumps(config))
    found = as_json(command, smollm3_checkpoint, folder)
    assert found["equal"] is True
    assert found["metadata"] == {"rope_theta": [50_000.0, 10_000.0], "layers_without_rope": [[3], []]}


def test_yarn_is_a_difference_of_the_configuration(smollm3_checkpoint: Path, tmp_path: Path, command: Command) -> None:
    assert command("to-hf", smollm3_checkpoint, tmp_path / "hf", "--yarn", "4").code == 0
    found = as_json(command, smollm3_checkpoint, tmp_path / "hf")
    assert (found["equal"], found["metadata"]) == (True, {"yarn": [1.0, 4.0]})


def test_nan_on_both_sides_is_equal_and_still_said(folder: Path, tmp_path: Path, command: Command) -> None:
    spoil(folder, "model.norm.weight", {0: math.nan})
    shutil.copytree(folder, tmp_path / "copy")
    ran = command("inspect", folder, tmp_path / "copy")
    assert last(ran.out) == "EQUAL: all 38 tensors are the same, bit for bit"
    assert "!! NOT FINITE: NaN or Inf in model.norm.weight" in ran.out and "\n!!  model.norm.weight" in ran.out
