"""A chat model asked one turn after another: its settings, its room, what it reads and what its answer is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.talk import Model
from smol_answers import IM_START
from smol_config import UserError


def test_the_folders_generation_config_holds_where_no_option_does(chat_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_folder, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    del config["pad_token_id"]
    config |= {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 77}
    (folder / "generation_config.json").write_text(json.dumps(config))
    model = Model(folder)
    own, cold, free = model.settings(), model.settings(temperature=0, top_p=0.5), model.settings(temperature=0.9, top_k=7)
    assert (own.do_sample, own.temperature, own.top_p, own.max_new_tokens) == (True, 0.6, 0.95, 77)
    assert (cold.do_sample, cold.temperature, cold.top_p) == (False, None, None)
    assert (free.do_sample, free.temperature, free.top_k, free.top_p) == (True, 0.9, 7, 0.95)
    assert model.settings(temperature=0.9, top_k=0).top_k == 0, "from all, whatever the folder says"
    greedy = Model(chat_folder)
    assert greedy.settings().max_new_tokens == 1024 and not greedy.settings().do_sample
    assert greedy.settings(top_p=0.9).do_sample, "else it would not be heard"
    assert model.settings().pad_token_id == model.tokenizer.pad_token_id == 0, "the tokenizer's, where the folder has none"


def test_an_answer_ends_where_the_models_room_ends(chat_folder: Path) -> None:
    model = Model(chat_folder)
    settings = model.settings(temperature=0, max_new_tokens=40)
    settings.eos_token_id = None  # it goes on as long as it may
    assert model.room == 512
    sizes = []
    generate = model.network.generate

    def observed(**given: Any) -> Any:
        output = generate(**given)
        sizes.append((given["input_ids"].shape[1], output.shape[1]))
        return output

    model.network.generate = observed
    for length in (460, 500):
        model.answer(IM_START * length, settings)
    assert sizes == [(460, 500), (500, 512)]
    with pytest.raises(UserError, match="has 512 tokens of the 512 that the model reads"):
        model.answer(IM_START * 512, settings)


def test_a_thought_that_the_prompt_begins_belongs_to_the_answer(chat_folder: Path) -> None:
    """As templates have it whose generation prompt ends with <think>."""
    model = Model(chat_folder)
    settings = model.settings(temperature=0, max_new_tokens=4)
    said = model.tokenizer("Hm.</think>Aye.", return_tensors="pt", add_special_tokens=False)["input_ids"]
    model.network.generate = lambda **given: torch.cat([given["input_ids"], said], dim=1)
    prompt, shown = model.prompt([{"role": "user", "content": "Hello!"}], True, ()), []
    plain, begun = model.answer(prompt, settings), model.answer(prompt + "<think>\n", settings, shown.append)
    assert plain.reasoning is None
    assert (begun.reasoning, begun.content, shown) == ("Hm.", "Aye.", ["<think>"])


def test_the_template_alone_says_which_special_tokens_there_are(chat_folder: Path, tmp_path: Path) -> None:
    """Not the tokenizer, which would begin the rendered conversation with a second one."""
    folder = shutil.copytree(chat_folder, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    begin = {"id": IM_START, "type_id": 0}
    [number] = [token["id"] for token in tokenizer["added_tokens"] if token["content"] == IM_START]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {IM_START: {"id": IM_START, "ids": [number], "tokens": [IM_START]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model, read = Model(folder), []
    assert model.tokenizer("Hello!")["input_ids"][0] == number
    generate = model.network.generate

    def observed(**given: Any) -> Any:
        read.append(given["input_ids"][0].tolist())
        return generate(**given)

    model.network.generate = observed
    prompt = model.prompt([{"role": "user", "content": "Hello!"}], False, ())
    model.answer(prompt, model.settings(temperature=0, max_new_tokens=2))
    assert model.tokenizer.decode(read[0]) == prompt
