"""Prepared data is what TRL would have made of it, is drawn as asked, and is made once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import ASK, SYSTEM, TELL, THINK, answered, config, sums, write_rows

from post_training.config import PreparationConfig
from post_training.normalise import Normaliser
from post_training.prepare import Prepared, prepare
from smol_config import ConfigError, UserError, parse

TODAY = "01 July 2025"


def rows_of(prepared: Prepared) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(input_ids, labels) of each sample, packed or not."""
    found = []
    for row in prepared.train:
        cuts = np.cumsum(row.get("seq_lengths") or [len(row["input_ids"])])[:-1]
        columns = (np.split(np.array(row[name]), cuts) for name in ("input_ids", "labels"))
        found += [tuple(tuple(part.tolist()) for part in sample) for sample in zip(*columns, strict=True)]
    return found


@pytest.fixture
def mixed_rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Chats of both modes, of one and several turns, with and without a system message."""
    rows = [*sums(20), answered("Why?", "So.", reasoning_content="Because it is low.")]
    rows += [{"messages": [SYSTEM, ASK, TELL, ASK, TELL]}, {"messages": [SYSTEM, ASK, THINK, ASK, THINK]}]
    write_rows(tmp_path / "mixed.jsonl", rows)
    return rows


def test_ids_and_labels_are_those_that_trl_prepares(
    tmp_path: Path, chat_folder: Path, tokenizer: Any, mixed_rows: list[dict[str, Any]]
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    settings = config(chat_folder, {"path": str(tmp_path / "mixed.jsonl")}, packing=False)
    ours = prepare(settings, tmp_path / "out")
    samples = [Normaliser(settings.data.sources[0])(row) for row in mixed_rows]
    theirs = [
        {"messages": sample.messages, "chat_template_kwargs": {**sample.options, "today_date": TODAY}} for sample in samples
    ]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat_folder),
        SFTConfig(
            str(tmp_path / "trl"),
            assistant_only_loss=True,
            max_length=256,
            use_cpu=True,
            bf16=False,
            report_to=[],
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list(theirs),
        processing_class=tokenizer,
    )
    columns = zip(trainer.train_dataset["input_ids"], trainer.train_dataset["labels"], strict=True)
    assert sorted(rows_of(ours)) == sorted((tuple(ids), tuple(labels)) for ids, labels in columns)


def test_packed_rows_hold_the_same_samples_and_trl_gives_each_its_own_positions(
    tmp_path: Path, chat_folder: Path, tokenizer: Any, mixed_rows: list[dict[str, Any]]
) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    file = {"path": str(tmp_path / "mixed.jsonl")}
    packed = prepare(config(chat_folder, file, max_length=300), tmp_path / "packed")
    alone = prepare(config(chat_folder, file, max_length=300, packing=False), tmp_path / "alone")
    assert sorted(rows_of(packed)) == sorted(rows_of(alone))
    assert len(packed.train) < len(alone.train) and max(map(len, packed.train["input_ids"])) <= 300
    collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=True)
    for row in packed.train:
        expected = [position for length in row["seq_lengths"] for position in range(length)]
        assert collate([row])["position_ids"][0].tolist() == expected


def test_a_step_of_trl_on_packed_rows_has_the_loss_of_the_samples_alone(
    tmp_path: Path, chat_folder: Path, mixed_rows: list[dict[str, Any]]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    prepared = prepare(config(chat_folder, {"path": str(tmp_path / "mixed.jsonl")}, max_length=600), tmp_path / "packed")
    network = AutoModelForCausalLM.from_pretrained(chat_folder, attn_implementation="sdpa")
    trainer = SFTTrainer(
        network,
        SFTConfig(
            str(tmp_path / "trl"),
            packing=True,
            max_length=600,
            shuffle_dataset=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_steps=1,
            per_device_train_batch_size=len(prepared.train),
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=prepared.train,
        processing_class=prepared.tokenizer,
    )
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                network(torch.tensor([ids])).logits[0, :-1], torch.tensor(labels[1:]), reduction="none"
            )[torch.tensor(labels[1:]) != -100]
            for ids, labels in rows_of(prepared)
        ]
    trainer.train()
    # fp32, summed in another order.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)


def test_loss_on_all_trains_every_token(tmp_path: Path, chat_folder: Path, mixed_rows: list[dict[str, Any]]) -> None:
    source = {"path": str(tmp_path / "mixed.jsonl")}
    prepared = prepare(config(chat_folder, source, loss_on="all", template="chatml"), tmp_path / "out")
    assert all(ids == labels for ids, labels in rows_of(prepared))
    assert "## Metadata" not in prepared.tokenizer.decode(prepared.train[0]["input_ids"])


def test_documents_are_cut_into_pieces_and_end_once(tmp_path: Path, chat_folder: Path, tokenizer: Any) -> None:
    texts = ["tide " * 300, "ebb.", "flood.<|im_end|>"]
    write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    source = {"path": str(tmp_path / "texts.jsonl"), "kind": "text"}
    prepared = prepare(config(chat_folder, source, max_length=64), tmp_path / "out")
    samples = rows_of(prepared)
    ids = [tokenizer(text.removesuffix("<|im_end|>"))["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    pieces = [tuple(document[start : start + 64]) for document in ids for start in range(0, len(document), 64)]
    assert sorted(sample[0] for sample in samples) == sorted(pieces)
    assert all(ids == labels for ids, labels in samples) and prepared.manifest["warnings"] == []


def test_pairs_are_prompt_and_two_answers_that_end_with_the_stop_token(tmp_path: Path, chat_folder: Path) -> None:
    rows = [{"prompt": f"Tide {i}?", "chosen": "The ebb.", "rejected": "The flood, I think."} for i in range(5)]
    source = {"path": str(write_rows(tmp_path / "pairs.jsonl", rows)), "kind": "preference", "mode": "no_think"}
    prepared = prepare(config(chat_folder, source), tmp_path / "out")
    tokenizer = prepared.tokenizer
    for row in prepared.train:
        assert tokenizer.decode(row["prompt_ids"]).endswith("?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n")
        assert tokenizer.decode(row["chosen_ids"]) == "The ebb.<|im_end|>"
        assert tokenizer.decode(row["rejected_ids"]) == "The flood, I think.<|im_end|>"
    assert prepared.manifest["train"]["trained_tokens"] == sum(
        len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in prepared.train
    )


def test_trl_renders_prompts_in_the_mode_that_each_row_asks_for(tmp_path: Path, chat_folder: Path) -> None:
    rows = [{"prompt": "4 + 5?", "answer": 9, "chat_template_kwargs": {"enable_thinking": think}} for think in (True, False)]
    source = {"path": str(write_rows(tmp_path / "prompts.jsonl", rows)), "kind": "prompts", "keep": ["answer"]}
    prepared = prepare(config(chat_folder, source), tmp_path / "out")
    assert sorted(prepared.train["mode"]) == ["no_think", "think"] and prepared.train["answer"] == ["9", "9"]
    for row in prepared.train:  # as TRL's GRPO renders: the template's variables are the same for all rows
        text = prepared.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        assert f"Reasoning Mode: /{row['mode']}\n" in text
        assert text.endswith("</think>\n") == (row["mode"] == "no_think")


# --- mixtures ----------------------------------------------------------------------------------------------------------------


def test_the_mixture_is_what_the_manifest_says(tmp_path: Path, chat_folder: Path) -> None:
    half = write_rows(tmp_path / "half.jsonl", sums(40))
    twice = write_rows(tmp_path / "twice.jsonl", sums(10, first=100))
    tokens = write_rows(tmp_path / "tokens.jsonl", sums(30, first=200))
    settings = config(
        chat_folder,
        {"path": str(half), "share": 0.5},
        {"path": str(twice), "share": 2.5},
        {"path": str(tokens), "tokens": 5000},
        packing=False,
    )
    prepared = prepare(settings, tmp_path / "out")
    found = {line["dataset"]: line for line in prepared.manifest["train"]["datasets"]}
    assert (found["set-0"]["drawn"], found["set-1"]["drawn"]) == (20, 25)
    assert 5000 <= found["set-2"]["tokens"] < 5000 + found["set-2"]["longest"]
    # Told and counted again on the data itself.
    lengths = [len(row["input_ids"]) for row in prepared.train]
    texts = [prepared.tokenizer.decode(row["input_ids"]) for row in prepared.train]
    by_set = [0, 0, 0]
    for text, length in zip(texts, lengths, strict=True):
        by_set[int(text.split("What is ")[1].split()[0]) // 100] += length
    assert by_set == [found[f"set-{number}"]["tokens"] for number in range(3)]
    assert sum(line["share_of_tokens"] for line in found.values()) == pytest.approx(1)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_configuration_gives_the_same_bytes_on_any_number_of_processes(
    tmp_path: Path, chat_folder: Path, workers: int
) -> None:
    for name in "abc":
        write_rows(tmp_path / "set" / f"{name}.jsonl", sums(20, first=20 * ord(name)))
    files = []
    for number, (seed, processes) in enumerate([(0, 1), (0, workers), (1, 1)]):
        settings = config(chat_folder, {"path": str(tmp_path / "set"), "share": 0.7}, seed=seed, workers=processes)
        assert prepare(settings, tmp_path / str(number)).manifest["train"]["samples"] == 42  # of 60 rows in three files
        files.append((tmp_path / str(number) / "train.arrow").read_bytes())
    assert files[0] == files[1] != files[2]


def test_what_is_prepared_is_opened_again_and_never_for_other_settings(tmp_path: Path, chat_folder: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", sums(10))
    first = prepare(config(chat_folder, {"path": str(file)}), tmp_path / "out")
    written = (tmp_path / "out" / "train.arrow").stat().st_mtime_ns
    again = prepare(config(chat_folder, {"path": str(file)}, workers=2), tmp_path / "out")
    assert again.manifest == first.manifest and (tmp_path / "out" / "train.arrow").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"out was prepared with other settings \(seed\); put them back, or remove"):
        prepare(config(chat_folder, {"path": str(file)}, seed=1), tmp_path / "out")
    write_rows(file, sums(11))
    with pytest.raises(UserError, match=r"other settings \(files\)"):
        prepare(config(chat_folder, {"path": str(file)}), tmp_path / "out")


def test_held_out_samples_are_prepared_beside_the_others(tmp_path: Path, chat_folder: Path) -> None:
    file, other = write_rows(tmp_path / "a.jsonl", sums(10)), write_rows(tmp_path / "b.jsonl", sums(4, first=50))
    held_out = [{"name": "set-0", "path": str(other)}]
    prepared = prepare(config(chat_folder, {"path": str(file)}, held_out=held_out), tmp_path / "out")
    assert prepared.manifest["held_out"]["samples"] == 4 and prepared.manifest["train"]["samples"] == 10
    text = prepared.tokenizer.decode([i for row in prepared.held_out for i in row["input_ids"]])
    assert "What is 53" in text and "What is 3 " not in text


def test_the_manifest_tells_what_became_of_the_rows(tmp_path: Path, chat_folder: Path) -> None:
    rows = [*sums(10), answered("Long?", "word " * 300), {"messages": [ASK]}]
    file = write_rows(tmp_path / "a.jsonl", rows)
    prepared = prepare(config(chat_folder, {"path": str(file), "max_broken": 1}), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == prepared.manifest
    assert manifest["train"]["rows_of"]["set-0"] == {
        "total": 12,
        "taken": 12,
        "broken": {"no assistant turn": 1},
        "left_out": {"overlong": 1},
        "noted": {},
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "train.arrow"}


# --- configuration -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"sources": [{"name": "a", "path": "x", "share": 1, "tokens": 5}]}, "data.sources.0.share=1 and tokens=5 are both"),
        ({"sources": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "data.sources: the name 'a' stands twice"),
        ({"sources": [{"name": "a", "path": "x", "columns": {"message": "y"}}]}, "'message' is no column of a chat source"),
        ({"sources": [{"name": "a", "path": "x", "keep": ["y"]}]}, r"data.sources.0.keep=\['y'\] is for kind=prompts"),
        ({"sources": [{"name": "a", "path": "x", "kind": "prompts", "keep": ["mode"]}]}, "keep: 'mode' is a column that"),
        ({"sources": [{"name": "a", "path": "x", "kind": "prompts", "tokens": 9}]}, "prompts have no tokens to train on"),
        (
            {"sources": [{"name": "a", "path": "x"}, {"name": "b", "path": "y", "kind": "preference"}]},
            "the kinds chat, preference cannot be trained together",
        ),
        ({"sources": []}, "data.sources: List should have at least 1 item"),
        ({"sources": [{"name": "a", "path": "x", "mod": "think"}]}, "mod: unknown key; did you mean 'mode'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(PreparationConfig, {"model": "m", "data": {"max_length": 64, **data}}, "test.yaml")
