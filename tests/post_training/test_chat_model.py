"""`chat-model`: tokens and template come in, the base model's weights stay."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from post_training import chat_model
from post_training.__main__ import main
from post_training.template import read_template
from smol_config import UserError


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_only_the_rows_of_new_tokens_are_new(base_model: Path, chat_folder: Path) -> None:
    base, chat = weights(base_model), weights(chat_folder)
    embedding = "model.embed_tokens.weight"
    assert base.keys() == chat.keys() and chat[embedding].shape == (1152, 32)  # 1,026 tokens, in steps of 128 rows
    assert all((base[name] == chat[name]).all() for name in base.keys() - {embedding})
    assert (chat[embedding][:1024] == base[embedding]).all()


def test_new_rows_are_near_the_mean_and_differ(base_model: Path, chat_folder: Path) -> None:
    rows, known = weights(chat_folder)["model.embed_tokens.weight"][1024:1026], weights(base_model)["model.embed_tokens.weight"]
    assert (rows[0] != rows[1]).any()
    assert ((rows - known.mean(0)).abs() < known.std(0)).all()  # ten times the noise


def test_a_second_call_makes_the_same_bytes(base_model: Path, chat_folder: Path, tmp_path: Path) -> None:
    """Also in the rows that no token has, whatever was drawn from torch's own generator before."""
    chat_model.run(base_model, tmp_path / "again")
    names = sorted(path.name for path in chat_folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((chat_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_the_base_models_logits_stay(base_model: Path, chat_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 45).reshape(1, -1)
    before, after = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (base_model, chat_folder))
    assert torch.equal(before, after[..., :1024])


def test_the_tokenizer_ends_turns_and_shows_thoughts(tokenizer: Any, chat_folder: Path) -> None:
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|end_of_text|>"
    ids = tokenizer("<|im_start|><think>a</think><|im_end|>")["input_ids"]
    assert len(ids) == 5 and tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>"
    assert tokenizer.chat_template == read_template("hybrid")
    ends = json.loads((chat_folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|end_of_text|>"]
    config = json.loads((chat_folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_old_text_has_its_old_ids(base_model: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    text = "def tide(place):\n    return 4.1  # metres <|end_of_text|>"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(base_model)(text)["input_ids"]


@pytest.fixture
def reserving(base_model: Path, tmp_path: Path) -> Path:
    """The base model with three reserved tokens and rows for them, as Llama 3 has them; <|im_end|> is new to it."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    folder = tmp_path / "reserving"
    state = AutoTokenizer.from_pretrained(base_model).backend_tokenizer.to_str().replace("<|im_end|>", "<|eom|>")
    backend = Tokenizer.from_str(state)
    backend.add_special_tokens([f"<|reserved_special_token_{number}|>" for number in range(3)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>").save_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(base_model)
    network.resize_token_embeddings(1027, mean_resizing=False)
    network.save_pretrained(folder)
    return folder


def test_reserved_tokens_are_taken_before_the_embedding_grows(reserving: Path, tmp_path: Path, capsys: Any) -> None:
    from transformers import AutoTokenizer

    assert main(["chat-model", str(reserving), str(tmp_path / "out")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>", "</think>"]) == [1024, 1025, 1026]
    assert len(tokenizer) == 1027 and weights(tmp_path / "out")["model.embed_tokens.weight"].shape[0] == 1027
    assert tokenizer.decode([1024, 1025], skip_special_tokens=True) == "<think>"
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "does not load"),
    ],
)
def test_what_is_no_model_is_refused_and_nothing_written(
    base_model: Path, tmp_path: Path, capsys: Any, spoil: Any, sentence: str
) -> None:
    shutil.copytree(base_model, tmp_path / "base")
    spoil(tmp_path / "base")
    assert main(["chat-model", str(tmp_path / "base"), str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="not a fast one"):
        chat_model.with_chat_tokens(Slow(), "")
