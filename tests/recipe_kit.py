"""Small runs of the recipes: their configurations, and what they leave on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from chats import sums, write_rows

from post_training.__main__ import main


def pairs(count: int) -> list[dict[str, Any]]:
    """Rows of preference, no two alike."""
    return [
        {"prompt": f"What is {i} and {i}?", "chosen": f"It is {2 * i}.", "rejected": f"It is {i}, I think." + " So." * (i % 3)}
        for i in range(count)
    ]


def write_config(folder: Path, recipe: str, model: Path, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """A configuration of a few steps in fp32 on small rows in `folder`; `changes` of sections win."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe == "preference":
        source = {"name": "pairs", "kind": "preference", "path": str(write_rows(folder / "pairs.jsonl", pairs(24)))}
    else:
        source = {"name": "sums", "path": str(write_rows(folder / "sums.jsonl", sums(48)))}
    config: dict[str, Any] = {
        "model": str(model),
        "data": {"max_length": 256, "sources": [source], "loss_on": "all" if recipe == "mid" else "assistant"},
        "train": {
            "output_dir": str(folder / "run"),
            "steps": 2,
            "global_batch_size": 2,
            "precision": "fp32",
            "activation_checkpointing": False,
        },
        "optim": {"learning_rate": 1e-3, "schedule": {"warmup_share": 0}},
    }
    if recipe == "preference":
        config["preference"] = {"beta": 0.5}
    for section, settings in (changes or {}).items():
        config[section] = config.get(section, {}) | settings
    path = folder / f"{recipe}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(recipe: str, config: Path, *overrides: str) -> int:
    """The command in this process; returns its exit code."""
    return main([recipe, "--config", str(config), *overrides])


def metrics(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a line says of the training, and not of the clock."""
    return [{key: value for key, value in line.items() if key != "time" and not key.startswith("perf/")} for line in lines]
