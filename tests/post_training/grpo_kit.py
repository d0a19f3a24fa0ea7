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
    """A model that answers each question with one of two words and the stop token, mostly: its head is set to do so."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from post_training.template import load_tokenizer

    tokenizer = load_tokenizer(str(chat_folder), "chatml")
    settings = AutoConfig.from_pretrained(chat_folder, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(chat_folder, config=settings, dtype="float32")
    right, wrong = tokenizer.convert_tokens_to_ids([RIGHT, WRONG])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        prompts = [[{"role": "system", "content": "/no_think"}, {"role": "user", "content": text}] for text in QUESTIONS]
        for prompt in prompts:
            asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
            for word in (right, wrong):
                before, after = model.model(torch.tensor([[*asked, word]])).last_hidden_state[0, -2:]
                for token, state in ((word, before), (tokenizer.eos_token_id, after / 2)):
                    model.lm_head.weight[token] += 8 * state / state.square().sum() / len(prompts)  # a logit of 8
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
        "optim": {"learning_rate": 1e-2, "schedule": {"warmup_share": 0}, "clip_grad_norm": 1.0},
        "checkpoint": {"every_steps": 2},
        "grpo": {"answers": 8, "max_answer": 4},
        "rewards": {"accuracy": {"exact": ["words"]}},
    }
    for section, settings in (changes or {}).items():
        config[section] = settings if section == "rewards" else config.get(section, {}) | settings
    path = folder / "grpo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
