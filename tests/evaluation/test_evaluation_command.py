"""`python -m evaluation held-out`: the losses of every held-out set by the trainer's names, or one sentence."""

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from evaluation.__main__ import WINDOWS, main
from evaluation.held_out import held_out_loss
from smol_train.sections.watch import EvaluationConfig


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Path:
    tokens = corpus / "tokens"
    data = {
        "tokenizer": str(corpus / "tokenizer"),
        "sequence_length": 64,
        "datasets": {"code": str(tokens / "code")},
        "held_out": {name: str(tokens / "held_out" / name) for name in ("code", "docs")},
        "stages": [{"name": "stable", "steps": 1, "weights": {"code": 1.0}}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": data, "evaluation": {"windows": 5}}))
    return path


def test_every_held_out_set_is_a_result_over_the_trainers_windows(config: Path, corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 1024}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.save_pretrained(tmp_path / "hf")
    output = tmp_path / "loss.json"
    assert main(["held-out", str(tmp_path / "hf"), "--config", str(config), "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    for name in ("code", "docs"):
        expected, _ = held_out_loss(model.eval(), corpus / "tokens" / "held_out" / name, 64, windows=5)
        assert results.pop(f"eval/loss/{name}") == pytest.approx(expected, abs=1e-5)
    assert results == {}


def test_without_a_setting_there_are_as_many_windows_as_in_training() -> None:
    assert EvaluationConfig().windows == WINDOWS


def test_bad_input_is_one_sentence_and_nothing_is_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(sentence: str) -> None:
        output = tmp_path / "loss.json"
        assert main(["held-out", str(tmp_path), "--config", str(config), "--output", str(output)]) == 2
        assert sentence in capsys.readouterr().err and not output.exists()

    refused(f"{tmp_path} has no config.json; give a Hugging Face folder")
    mapping = yaml.safe_load(config.read_text())
    del mapping["data"]["held_out"]
    config.write_text(yaml.safe_dump(mapping))
    refused(f"{config}: data.held_out names no dataset; add one to evaluate on")
    config.write_text("data: {}")
    refused("data.tokenizer: ")


def test_settings_are_refused_where_a_command_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["held-out", "hf", "--config", "c.yaml", "--output", "loss.json", "train.seed=1"])
    assert "unrecognized arguments: train.seed=1" in capsys.readouterr().err
