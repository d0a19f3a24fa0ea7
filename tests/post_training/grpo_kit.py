"""Small runs of GRPO: a model that answers with one of two words, and configurations that judge it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from chats import write_rows

WORDS = ("river", "morning", "tea", "letter", "bridge", "clock", "garden", "map")
QUESTIONS = [f"Is it {word}?" for word in WORDS]
RIGHT, WRONG = "p", "q"


def undecided(folder: Path, chat_folder: Path) -> Path:
    """A model that answers each question with one of two words and the stop token, mostly: its head is set to do so."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from post_training.template import load_tokenizer

    tokenizer = load_tokenizer(str(chat_folder), "chatml")
    settings = AutoConfig.from_pretrained(chat_folder, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(chat_folder, config=settings, dtype="float32")
    right, wrong = tokenizer.convert_tokens_to_ids([RIGHT, WRONG])
    prompts = [[{"role": "system", "content": "/no_think"}, {"role": "user", "content": text}] for text in QUESTIONS]
    asked = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
    with torch.no_grad():
        ends = [model.model(torch.tensor([[*ids, word]])).last_hidden_state[0, -2:] for ids in asked for word in (right, wrong)]
        states = torch.stack([torch.stack(of_word).mean(0) for of_word in zip(*ends, strict=True)])  # before the word, after it
        solve = torch.linalg.pinv(states)
        model.lm_head.weight.zero_()
        model.lm_head.weight[[right, wrong]] = solve @ torch.tensor([8.0, 0.0])
        model.lm_head.weight[tokenizer.eos_token_id] = solve @ torch.tensor([0.0, 8.0])
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
            "micro_batch_size": 16,
            "global_batch_size": 32,
            "precision": "fp32",
            "activation_checkpointing": False,
        },
        "optim": {"learning_rate": 4e-3, "schedule": {"kind": "constant", "warmup_share": 0}, "clip_grad_norm": 1.0},
        "checkpoint": {"every_steps": 2},
        "grpo": {"answers": 8, "max_answer": 4},
        "rewards": {"accuracy": {"exact": ["words"]}},
    }
    for section, settings in (changes or {}).items():
        config[section] = settings if section == "rewards" else config.get(section, {}) | settings
    path = folder / "grpo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
