"""What the tests of the plan compute with: SmolLM3's own configuration, and a model small enough for counts by hand."""

from pathlib import Path
from typing import Any

import smol_config
from smol_train.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]


SMOLLM3 = str(ROOT / "configs/smollm3/pretrain.yaml")


def smollm3(*overrides: str) -> RunConfig:
    return smol_config.load(RunConfig, SMOLLM3, overrides, keep_unset=True)


def small(**sections: dict[str, Any]) -> RunConfig:
    """8 layers of hidden 64 and ffn 128, 4 heads of 16 with 2 groups, vocabulary 96, 32-token windows."""
    mapping: dict[str, dict[str, Any]] = {
        "model": {
            "num_layers": 8,
            "hidden_size": 64,
            "ffn_hidden_size": 128,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "vocab_size": 96,
        },
        "data": {
            "tokenizer": "t",
            "sequence_length": 32,
            "datasets": {"a": "a", "b": "b"},
            "stages": [
                {"name": "one", "steps": 6, "weights": {"a": 1, "b": 0}},
                {"name": "two", "tokens": 1000, "weights": {"a": 1, "b": 2}},
            ],
        },
        "train": {"output_dir": "o", "global_batch_size": 16, "micro_batch_size": 2},
        "optim": {"learning_rate": 1.0, "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 2}},
        "parallel": {},
    }
    for name, section in sections.items():
        mapping[name] |= section
    return smol_config.parse(RunConfig, mapping, source="test")
