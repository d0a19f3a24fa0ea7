"""inspect PATH: what is in a checkpoint or a folder, NaN and Inf in plain sight, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from inspect_parts import _tensors, as_json, change, last, spoil
from safetensors.torch import load_file, save_file
from small_models import LLAMA, SMOLLM3, Command, random_weights

from conversion import inspect_numbers
from conversion.inspect_numbers import difference, stats
from conversion.megatron_reader import MegatronReader
from conversion.safetensors_files import SafetensorsReader
from conversion.weights import weight_table
from smol_train import checkpoint_integrity
from smol_train.checkpoint_folder import MARKER


@pytest.fixture
def folder(smollm3_export: Path, tmp_path: Path) -> Path:
    """A copy of smollm3_export to spoil."""
    return Path(shutil.copytree(smollm3_export, tmp_path / "folder"))


# --- numbers ---------------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_finite_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_numbers, "CHUNK", 7)  # several, the last one shorter
    tensor = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) + 3
    whole = tensor.double()
    found = stats(tensor)
    assert found.norm == pytest.approx(float(whole.norm()), rel=1e-12)
    assert found.mean == pytest.approx(float(whole.mean()), rel=1e-12)
    assert found.std == pytest.approx(float(whole.std(correction=0)), rel=1e-12)
    assert (found.absmax, found.nan, found.inf) == (float(whole.abs().max()), 0, 0)
    tensor[0, 0], tensor[4, 8], tensor[2, 2] = math.nan, math.inf, -math.inf
    rest = tensor[tensor.isfinite()].double()
    found = stats(tensor)
    assert (found.nan, found.inf) == (1, 2)
    assert (found.mean, found.norm) == (
        pytest.approx(float(rest.mean()), rel=1e-12),
        pytest.approx(float(rest.norm()), rel=1e-12),
    )
    assert stats(torch.full((3,), math.nan)).as_json() == {"norm": 0, "mean": 0, "std": 0, "absmax": 0, "nan": 3, "inf": 0}
    assert stats(torch.empty(0)).absmax == 0


def test_a_difference_is_of_bits_and_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_numbers, "CHUNK", 3)
    a = torch.tensor([[3.0, 0.0, -4.0], [0.0, math.nan, 12.0]])
    same = difference(a, a.clone())
    assert (same.equal, same.largest, same.relative, same.not_finite) == (True, 0, 0, 1)  # a NaN is equal to itself
    b = a.clone()
    b[0, 2] = -3.0
    apart = difference(a, b)
    assert (apart.equal, apart.largest, apart.relative) == (False, 1, pytest.approx(1 / 13))
    assert not difference(torch.tensor([0.0]), torch.tensor([-0.0])).equal
    assert difference(torch.tensor([0.0]), torch.tensor([1e-30])).relative == math.inf
    other_dtype = difference(torch.tensor([1.5]), torch.tensor([1.5], dtype=torch.bfloat16))
    assert (other_dtype.equal, other_dtype.largest) == (False, 0)
    assert difference(torch.tensor([math.inf, 1.0]), torch.tensor([2.0, 1.0])).as_json() == {
        "equal": False,
        "max_difference": 0,
        "relative_difference": 0,
        "not_finite": 1,
    }


# --- one path --------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_described_whole(checkpoint: Path, command: Command) -> None:
    history = [{"stage": "warm", "weights": {"web": 1.0}, "first_step": 0, "steps": 20, "first_sample": 0, "batch_size": 4}]
    data = {"order_version": 1, "seed": 7, "sequence_length": 64, "history": history, "planned": []}
    data |= {"positions": {"web": 80}, "manifests": {"web": "0123456789abcdef"}}
    layout = {"tensor": 2, "pipeline": 1, "data": 4}
    change(checkpoint, step=20, samples=1080, tokens=5120, reason="periodic", layout=layout, backend="te", data=data)
    change(checkpoint, optimizer="dp_reshardable", skips=[[1000, 2000]])
    ran = command("inspect", checkpoint.parent)  # the run's newest
    assert ran.code == 0, ran.err
    for text in (
        f"{checkpoint}: checkpoint, {SMOLLM3.parameters:,} parameters in bfloat16",
        "20 steps, 5,120 tokens, next sample 1,080",
        "periodic; torch ",
        "tensor 2, pipeline 1, data 4 on the te backend",
        "dp_reshardable",
        "num_layers 4, hidden_size 64",
        "seed 7, 64 tokens a window, order version 1",
        "warm to step 20",
        "web 80",
        "web 0123456789ab\n",
        "samples 1,000 to 1,999, in rollbacks",
    ):
        assert text in ran.out, text
    assert last(ran.out) == "26 tensors, all values are finite"
    found = as_json(command, checkpoint)
    assert found["state"]["data"] == data and found["run"]["model"]["no_rope"] == 4
    assert (found["kind"], found["parameters"], found["not_finite"]) == ("checkpoint", SMOLLM3.parameters, 0)


def test_every_tensors_statistics_are_its_own(llama_checkpoint: Path, llama_export: Path, command: Command) -> None:
    weights = random_weights(LLAMA, torch.float32)
    found = as_json(command, llama_checkpoint)["tensors"]
    assert list(found) == [weight.megatron for weight in weight_table(LLAMA)]
    parts = {name: t for row in weight_table(LLAMA) for name, t in row.split(weights[row.megatron], LLAMA).items()}
    for tensors, expected in ((found, weights), (as_json(command, llama_export)["tensors"], parts)):
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (tensors[name]["shape"], tensors[name]["dtype"]) == (list(tensor.shape), "float32")
            assert tensors[name]["norm"] == pytest.approx(float(tensor.double().norm()), rel=1e-12)
            assert tensors[name]["absmax"] == float(tensor.abs().max())


def test_kinds_are_over_layers_and_tensors_one_by_one(llama_export: Path, command: Command) -> None:
    kinds = command("inspect", llama_export).out
    (row,) = [line.split() for line in kinds.splitlines() if line.startswith("model.layers.N.mlp.up_proj.weight")]
    norms = [float(w.norm()) for n, w in _tensors(llama_export).items() if n.endswith("mlp.up_proj.weight")]
    assert row[1:4] == ["2", "[80,", "48]"] and "model.layers.0." not in kinds
    assert (row[5], row[6], row[7]) == (f"{min(norms):.4g}", "to", f"{max(norms):.4g}")
    each = command("inspect", llama_export, "--tensors").out.splitlines()
    assert sum(line.startswith("model.layers.1.") for line in each) == 9
    assert [line.split()[0] for line in each if "norm.weight" in line][-1] == "model.norm.weight"


def test_a_folder_is_described_whole(smollm3_export: Path, smollm3_checkpoint: Path, command: Command) -> None:
    ran = command("inspect", smollm3_export)
    for text in (
        f"{smollm3_export}: Hugging Face folder, {SMOLLM3.parameters:,} parameters in bfloat16",
        "SmolLM3ForCausalLM (model_type smollm3)",
        f"passed, with {smollm3_checkpoint}; logits differ by up to ",
        "tokenizer.json ",
        "num_hidden_layers 4, hidden_size 64",
    ):
        assert text in ran.out, text
    found = as_json(command, smollm3_export)
    assert (found["config"]["model_type"], found["parity"]["passed"], found["merge"]) == ("smollm3", True, None)
    assert found["files"]["model.safetensors"] == (smollm3_export / "model.safetensors").stat().st_size


def test_parity_that_failed_or_is_missing_is_said(folder: Path, command: Command) -> None:
    parity = folder / "parity.json"
    parity.write_text(json.dumps({"passed": False, "reason": "logits differ by up to 3"}))
    assert "!! FAILED: logits differ by up to 3" in command("inspect", folder, "--shapes-only").out
    parity.write_text("{")
    assert "parity.json is damaged (cannot be read: " in command("inspect", folder, "--shapes-only").out
    parity.unlink()
    assert "no parity.json: not known to be equal to a checkpoint" in command("inspect", folder, "--shapes-only").out
    merged = {"method": "linear", "models": [{"name": "a/b", "weight": 0.9}, {"name": "c", "weight": 0.1}]}
    (folder / "merge.json").write_text(json.dumps(merged))
    assert "0.9 x a/b, 0.1 x c" in command("inspect", folder, "--shapes-only").out


def test_nan_and_inf_stand_out(folder: Path, command: Command) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    spoil(folder, name, {5: math.nan, 6: math.nan, 900: -math.inf})
    ran = command("inspect", folder)
    loud = [line for line in ran.out.splitlines() if line.startswith("!!")]
    assert loud[0].split()[1] == "model.layers.N.mlp.down_proj.weight" and loud[0].split()[-2:] == ["2", "1"]
    assert loud[1:] == [f"!! NOT FINITE: 3 values in 1 of 38 tensors: {name} (2 NaN, 1 Inf)"] == [last(ran.out)]
    found = as_json(command, folder)
    assert (found["not_finite"], found["tensors"][name]["nan"], found["tensors"][name]["inf"]) == (3, 2, 1)
    assert math.isfinite(found["tensors"][name]["norm"])


def test_shapes_only_reads_no_weights(
    smollm3_checkpoint: Path, smollm3_export: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(MegatronReader, "read", never)
    monkeypatch.setattr(SafetensorsReader, "read", never)
    monkeypatch.setattr(checkpoint_integrity, "sha256", never)
    for path, count in ((smollm3_checkpoint, 26), (smollm3_export, 38)):
        ran = command("inspect", path, "--shapes-only")
        assert ran.code == 0 and "[64, 64]" in ran.out and "absmax" not in ran.out
        assert last(ran.out) == f"{count} tensors; their values were not read"
    ran = command("inspect", smollm3_checkpoint, smollm3_export, "--shapes-only")
    assert last(ran.out) == "38 tensors agree in name, shape and dtype; their values were not read"
    assert as_json(command, smollm3_checkpoint, smollm3_export, "--shapes-only")["equal"] is None
    with pytest.raises(AssertionError, match="read"):
        command("inspect", smollm3_export)


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_what_is_neither_or_damaged_is_one_sentence(
    checkpoint: Path, folder: Path, tmp_path: Path, smollm3_checkpoint: Path, command: Command
) -> None:
    def refused(sentence: str, *arguments: object) -> None:
        ran = command("inspect", *arguments)
        assert (ran.code, ran.out) == (2, "") and sentence in ran.err, ran
        assert ran.err.count("\n") == 1

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(f"{empty / 'none'} is not a folder; give a checkpoint, a run's folder or a Hugging Face folder", empty / "none")
    refused(f"{empty} holds neither a checkpoint (iter_*, or the files of one) nor a Hugging Face model", empty)
    refused("is not a folder", smollm3_checkpoint, folder / "config.json")
    refused(f"--json {empty} cannot be written", folder, "--json", empty)

    (folder / "model.safetensors").write_bytes(b"\x10")
    refused(f"{folder / 'model.safetensors'} cannot be read", folder)
    (folder / "config.json").write_text("{")
    refused(f"{folder / 'config.json'} is not JSON", folder)

    largest = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    refused("is damaged (", checkpoint, "--shapes-only")
    refused("is damaged (", smollm3_checkpoint, checkpoint)
    (checkpoint / MARKER).unlink()
    refused(f"checkpoint {checkpoint} has no COMPLETE marker", checkpoint)


def test_a_folder_of_another_architecture_is_shown_but_not_compared_with_a_checkpoint(
    smollm3_checkpoint: Path, folder: Path, command: Command
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    assert "GPT2LMHeadModel (model_type gpt2)" in command("inspect", folder).out
    ran = command("inspect", smollm3_checkpoint, folder)
    assert ran.code == 2 and "is of architecture GPT2LMHeadModel" in ran.err


def test_a_tensor_of_a_dtype_that_is_not_for_weights_is_shown_too(folder: Path, command: Command) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"counts": torch.arange(4)}, path, {"format": "pt"})
    found = as_json(command, folder)["tensors"]["counts"]
    assert (found["dtype"], found["shape"], found["absmax"]) == ("I64", [4], 3)
