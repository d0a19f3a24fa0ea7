"""One side of prepare_chats.py, in a process of its own: prints what it took as a line of JSON.

python -m benchmarks.prepare_chats_side model FOLDER        make FOLDER/chat, the model that both sides use
python -m benchmarks.prepare_chats_side ours|trl FOLDER     prepare FOLDER/chats.jsonl
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.prepare_chats import MAX_LENGTH

Counts = tuple[int, int]
"""Tokens, trained tokens."""


def make_model(folder: Path) -> None:
    """A tiny SmolLM3 for the tokenizer, made a chat model."""
    from transformers import AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

    from post_training import chat_model

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 32_000}
    heads: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    SmolLM3ForCausalLM(SmolLM3Config(**sizes, **heads)).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "base")
    chat_model.run(folder / "base", folder / "chat")


def ours(folder: Path, out: Path) -> Counts:
    from post_training.config import Data, PreparationConfig, Source
    from post_training.prepare import prepare

    # What TRL does by default: the mode is /think, and the template shows the day's date.
    source = Source(name="chats", path=str(folder / "chats.jsonl"), mode="think")
    data = Data(sources=[source], max_length=MAX_LENGTH, today=f"{date.today():%d %B %Y}")
    manifest = prepare(PreparationConfig(model=str(folder / "chat"), data=data), out).manifest
    return manifest["train"]["tokens"], manifest["train"]["trained_tokens"]


def trl(folder: Path, out: Path) -> Counts:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset("json", data_files=str(folder / "chats.jsonl"), split="train", cache_dir=str(out))
    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": []}
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "chat"),
        SFTConfig(str(out), assistant_only_loss=True, packing=True, max_length=MAX_LENGTH, **settings),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "chat"),
    )
    prepared: Any = trainer.train_dataset
    batches = prepared.with_format("numpy").iter(100)
    labels = [row for batch in batches for row in batch["labels"]]
    return sum(len(row) for row in labels), sum(int((row != -100).sum()) for row in labels)


def measure(prepare: Callable[[Path, Path], Counts], folder: Path) -> dict[str, float]:
    """Counts, seconds and memory of one preparation."""
    import datasets  # noqa: F401  imported before the clock starts, as by either trainer
    import transformers  # noqa: F401
    import trl  # noqa: F401
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder / "chat")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started, before = time.perf_counter(), time.process_time()
        tokens, trained = prepare(folder, Path(out) / "out")
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - before
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"tokens": tokens, "trained": trained, "seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": megabytes}


def main() -> int:
    side, folder = sys.argv[1], Path(sys.argv[2])
    if side == "model":
        make_model(folder)
    else:
        print(json.dumps(measure({"ours": ours, "trl": trl}[side], folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
