"""from-hf: there and back gives the same bytes, and what a checkpoint cannot hold is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import LLAMA, QWEN2, QWEN3, SMOLLM3, Command

from smol_model.config import ModelConfig
from smol_train.checkpoint_folder import read_model_config, read_run_mapping, read_state
from smol_train.checkpoint_integrity import find

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("which", "model"), [("smollm3_export", SMOLLM3), ("llama_export", LLAMA), ("qwen2_export", QWEN2), ("qwen3_export", QWEN3)]
)
def test_there_and_back_gives_the_same_bytes(
    which: str, model: ModelConfig, request: pytest.FixtureRequest, tmp_path: Path, command: Command
) -> None:
    export: Path = request.getfixturevalue(which)
    folder, again = tmp_path / "iter_0000000", tmp_path / "hf"
    ran = command("from-hf", export, folder)
    assert ran.code == 0 and f"wrote {folder}" in ran.out, ran.err
    options = ["--dtype", "fp32", "--shard-size", "100KB"] if which == "llama_export" else []
    assert command("to-hf", folder, again, *options).code == 0
    for path in export.iterdir():
        if path.name not in ("parity.json", "README.md"):  # they name the checkpoint and the folder
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    assert find(folder) == folder
    said = {"num_query_groups": model.query_groups, "max_sequence_length": 64}
    assert read_model_config(folder).model_dump() == model.model_copy(update=said).model_dump()
    assert read_run_mapping(folder)["data"] == {"tokenizer": str(export), "sequence_length": 64}
    assert (read_state(folder).step, read_state(folder).optimizer) == (0, None)


def test_a_model_that_transformers_made_is_equal_after_import(byte_tokenizer: Path, tmp_path: Path, command: Command) -> None:
    """Llama 3's frequencies too. The command in a process of its own, where nothing was imported before it."""
    import transformers

    torch.manual_seed(0)
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, **bands},
    )
    hf_dir = tmp_path / "hf"
    transformers.LlamaForCausalLM(config).save_pretrained(hf_dir)
    shutil.copytree(byte_tokenizer, hf_dir, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "conversion", "from-hf", str(hf_dir), str(tmp_path / "iter_0000000")],
        cwd=REPOSITORY,
        env=os.environ | {"MASTER_ADDR": "nowhere.invalid", "WORLD_SIZE": "8", "RANK": "3"},  # as inside a job
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_model_config(tmp_path / "iter_0000000").llama3_rope_factor == 8
    assert command("verify", tmp_path / "iter_0000000", hf_dir).code == 0
    assert json.loads((hf_dir / "parity.json").read_text())["passed"]


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (edit_weights(lambda w: w.pop("model.norm.weight")), "missing: model.norm.weight"),
    "left over": (
        edit_weights(lambda w: w.update({f"model.layers.1.self_attn.{part}_norm.weight": torch.ones(8) for part in "qk"})),
        "unexpected: model.layers.1.self_attn.k_norm.weight, model.layers.1.self_attn.q_norm.weight",
    ),
    "a tied head of its own": (
        edit_weights(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1})),
        "lm_head.weight differs from model.embed_tokens.weight, but its configuration ties them",
    ),
    "shape": (edit_weights(lambda w: w.update({"model.norm.weight": torch.ones(3)})), "model.norm.weight [3] instead of [64]"),
    "two dtypes": (edit_weights(lambda w: w.update({"model.norm.weight": w["model.norm.weight"].float()})), "dtype BF16, F32"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "not a mapping": (lambda folder: (folder / "config.json").write_text("[]"), "holds list, not a mapping"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_one_sentence_and_writes_nothing(
    name: str, smollm3_export: Path, tmp_path: Path, command: Command
) -> None:
    spoil, sentence = FAULTS[name]
    folder = Path(shutil.copytree(smollm3_export, tmp_path / "hf"))
    spoil(folder)
    ran = command("from-hf", folder, tmp_path / "iter_0000000")
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "iter_0000000").exists()


def test_a_qwen3_without_a_norm_is_refused(qwen3_export: Path, tmp_path: Path, command: Command) -> None:
    folder = Path(shutil.copytree(qwen3_export, tmp_path / "hf"))
    edit_weights(lambda w: w.pop("model.layers.1.self_attn.k_norm.weight"))(folder)
    ran = command("from-hf", folder, tmp_path / "iter_0000000")
    assert ran.code == 2 and "(missing: model.layers.1.self_attn.k_norm.weight)" in ran.err


def test_a_tied_head_that_is_stored_all_the_same_is_taken(qwen3_export: Path, tmp_path: Path, command: Command) -> None:
    """As in published folders of small Qwen3 models."""
    folder = Path(shutil.copytree(qwen3_export, tmp_path / "hf"))
    edit_weights(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))(folder)
    assert command("from-hf", folder, tmp_path / "iter_0000000").code == 0
    ran = command("verify", tmp_path / "iter_0000000", folder)
    assert ran.code == 0, ran.err


def test_an_existing_target_is_refused(smollm3_export: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "notes").write_text("mine")
    for target in (tmp_path, tmp_path / "notes"):
        ran = command("from-hf", smollm3_export, target)
        assert ran.code == 2 and f"{target} exists; give a checkpoint folder that does not" in ran.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_checkpoint_of_another_architecture_is_not_what_the_folder_holds(
    llama_export: Path, qwen3_export: Path, tmp_path: Path, command: Command
) -> None:
    """Another family's configuration beside the weights: from-hf reads neither into the other."""
    folder = Path(shutil.copytree(qwen3_export, tmp_path / "hf"))
    shutil.copyfile(llama_export / "config.json", folder / "config.json")
    ran = command("from-hf", folder, tmp_path / "iter_0000000")
    assert ran.code == 2 and "tensors do not fit its configuration (missing: lm_head.weight; unexpected: " in ran.err
    assert not (tmp_path / "iter_0000000").exists()


def test_a_tokenizer_that_outgrew_the_embedding_is_refused(smollm3_export: Path, tmp_path: Path, command: Command) -> None:
    folder = Path(shutil.copytree(smollm3_export, tmp_path / "hf"))
    larger = transformers.AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["<one>", "<two>"])
    larger.save_pretrained(folder)
    ran = command("from-hf", folder, tmp_path / "iter_0000000")
    assert ran.code == 2 and "has 261 ids and the model's vocab_size is 260; put the one" in ran.err
    assert not (tmp_path / "iter_0000000").exists()
