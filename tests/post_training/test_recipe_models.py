"""A run's models in hf/: their precision, where they end answers, adapters merged into them, pushes."""

import json
from pathlib import Path
from typing import Any

import pytest
from recipe_kit import metrics, run, write_config
from safetensors.numpy import load_file


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_model_has_its_starts_precision_and_ends_answers_as_the_data_does(
    lora: dict[str, Any] | None, chat_folder: Path, tmp_path: Path
) -> None:
    """The start is in bf16, and its configuration names another stop token than its tokenizer, which wrote the data."""
    from safetensors.torch import load_file as load_tensors
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer, start = AutoTokenizer.from_pretrained(chat_folder), tmp_path / "start"
    model = AutoModelForCausalLM.from_pretrained(chat_folder, dtype="bfloat16")
    model.config.eos_token_id = model.generation_config.eos_token_id = other = tokenizer.convert_tokens_to_ids("the")
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    more = {"train": {"steps": 1}, "lora": lora} if lora else {"train": {"steps": 1}}
    assert run("sft", write_config(tmp_path, "sft", start, more)) == 0
    made = tmp_path / "run/hf/step_1"
    assert {str(tensor.dtype) for tensor in load_tensors(made / "model.safetensors").values()} == {"torch.bfloat16"}
    config = json.loads((made / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["eos_token_id"] == tokenizer.eos_token_id != other
    assert GenerationConfig.from_pretrained(made).eos_token_id == [tokenizer.eos_token_id, other]


def test_lora_trains_adapters_alone_and_leaves_a_whole_model(chat_folder: Path, tmp_path: Path) -> None:
    more = {"lora": {"rank": 4}, "train": {"precision": "bf16", "steps": 2}, "optim": {"learning_rate": 1e-2}}
    held_out = [{"name": "held", "path": str(tmp_path / "held.jsonl")}]
    config = write_config(tmp_path, "sft", chat_folder, {**more, "data": {"held_out": held_out}})
    (tmp_path / "held.jsonl").write_text((tmp_path / "sums.jsonl").read_text().replace("What is", "How much is"))
    assert run("sft", config, f"checkpoint.push=file://{tmp_path}/pushed") == 0
    adapters = load_file(tmp_path / "run/iter_0000002/adapter_model.safetensors")
    assert adapters and all("lora_" in name for name in adapters)
    assert not (tmp_path / "run/iter_0000002/model.safetensors").exists()
    start, end = (load_file(folder / "model.safetensors") for folder in (chat_folder, tmp_path / "run/hf/step_2"))
    changed = {name for name in start if (start[name] != end[name]).any()}
    assert start.keys() == end.keys()
    assert changed == {name for name in start if name.endswith("proj.weight")}
    assert "eval/loss" in metrics(tmp_path / "run")[-1] and "eval/loss" not in metrics(tmp_path / "run")[0]
    assert (tmp_path / "pushed/step_2/model.safetensors").is_file()
