"""Small runs of GRPO: a model that answers with one of two words, and configurations that judge it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from chats import write_rows

WORDS = ("river", "tea", "letter", "map")
QUESTIONS = [f"Is it {word}?" for word in WORDS]
RIGHT, WRONG = "p", "q"


def undecided(folder: Path, chat_folder: Path) -> Path:
    """A model that has learnt, by plain cross-entropy, to answer each question with one of two words, each as often."""
    import torch
    from transformers import AutoModelForCausalLM

    from post_training.template import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(chat_folder, dtype="float32")
    tokenizer = load_tokenizer(str(chat_folder), "chatml")
    prompts = [[{"role": "system", "content": "/no_think"}, {"role": "user", "content": text}] for text in QUESTIONS]
    asked = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in prompts]
    texts = [f"{text}{word}<|im_end|>" for text in asked for word in (RIGHT, WRONG)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100  # the word, which is one token, and the stop token
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def grpo_config(folder: Path, model: Path, changes: Mapping[str, Any] | None = None, **source: Any) -> Path:
    """A configuration in which RIGHT is right; `changes` of sections win, and those of the source."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": question, "answer": RIGHT} for question in QUESTIONS]
    prompts = {"name": "words", "kind": "prompts", "path": str(write_rows(folder / "prompts.jsonl", rows)), "keep": ["answer"]}
    config: dict[str, Any] = {
        "model": str(model),
        "data": {"template": "chatml", "max_length": 128, "sources": [prompts | {"mode": "no_think"} | source]},
        "train": {
            "output_dir": str(folder / "run"),
            "steps": 2,
            "micro_batch_size": 8,
            "global_batch_size": 16,
            "precision": "fp32",
            "activation_checkpointing": False,
        },
        "optim": {"learning_rate": 3e-3, "schedule": {"warmup_share": 0}, "clip_grad_norm": 1.0},
        "checkpoint": {"every_steps": 2},
        "grpo": {"answers": 8, "max_answer": 4},
        "rewards": {"accuracy": {"exact": ["words"]}},
    }
    for section, settings in (changes or {}).items():
        config[section] = settings if section == "rewards" else config.get(section, {}) | settings
    path = folder / "grpo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
