"""One side of sft.py, in a process of its own: prints what it took as a line of JSON.

python -m benchmarks.sft_side model FOLDER                       make FOLDER/chat, the model that all sides train
python -m benchmarks.sft_side packed|unpacked|trl FOLDER STEPS   train on FOLDER/chats.jsonl
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.sft import MAX_LENGTH, ROWS, SAMPLES

UNTIMED = 2
"""First steps, in which libraries warm up."""


def make_model(folder: Path) -> None:
    """A small SmolLM3 for the tokenizer, made a chat model."""
    from transformers import AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

    from post_training import chat_model

    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 8192}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}
    SmolLM3ForCausalLM(SmolLM3Config(**sizes, **heads, **tokens)).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "base")
    chat_model.run(folder / "base", folder / "chat")


class Entrance:
    """Counts what goes into the model: slots, and those that are no padding, from the step after UNTIMED on."""

    def __init__(self, padding: int) -> None:
        from transformers import SmolLM3Model

        self.calls: list[tuple[float, int, int]] = []
        """Time at which the call begins, slots, tokens."""
        forward: Any = SmolLM3Model.forward

        def counted(model: Any, *arguments: Any, **named: Any) -> Any:
            ids = named["input_ids"]
            self.calls.append((time.perf_counter(), ids.numel(), int((ids != padding).sum())))
            return forward(model, *arguments, **named)

        setattr(SmolLM3Model, "forward", counted)  # noqa: B010  mypy refuses a method assigned

    def measured(self, steps: int) -> dict[str, float]:
        """Between the beginnings of the first timed step and of the one after the last: one more is trained for that."""
        timed = self.calls[UNTIMED : UNTIMED + steps]
        end = self.calls[UNTIMED + steps][0]
        slots, tokens = (sum(call[column] for call in timed) for column in (1, 2))
        return {"slots": slots, "tokens": tokens, "seconds": end - timed[0][0]}


def ours(folder: Path, out: Path, steps: int, packing: bool) -> None:
    from post_training.recipes import run
    from post_training.recipes.config import SftConfig
    from smol_config import parse

    rows = ROWS if packing else SAMPLES
    mapping = {
        "model": str(folder / "chat"),
        "data": {
            "max_length": MAX_LENGTH,
            "packing": packing,
            "template": "hybrid",
            "sources": [{"name": "chats", "path": str(folder / "chats.jsonl"), "mode": "think"}],
        },
        "train": {
            "output_dir": str(out / "run"),
            "steps": steps,
            "micro_batch_size": rows,
            "global_batch_size": rows,
            "precision": "fp32",
            "activation_checkpointing": False,
        },
        "optim": {"learning_rate": 1e-4},
        "checkpoint": {"every_steps": steps},
    }
    assert run.train(parse(SftConfig, mapping, "benchmark")) == 0


def trl(folder: Path, out: Path, steps: int) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False}
    lengths: dict[str, Any] = {"max_length": MAX_LENGTH, "max_steps": steps, "per_device_train_batch_size": SAMPLES}
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "chat"),
        SFTConfig(str(out / "run"), assistant_only_loss=True, save_strategy="no", **lengths, **settings),
        train_dataset=load_dataset("json", data_files=str(folder / "chats.jsonl"), split="train", cache_dir=str(out)),
        processing_class=AutoTokenizer.from_pretrained(folder / "chat"),
    ).train()


def measure(side: str, folder: Path, steps: int) -> dict[str, float]:
    """Tokens, slots, seconds and memory of the timed steps."""
    from transformers import AutoConfig, AutoModelForCausalLM

    entrance = Entrance(AutoConfig.from_pretrained(folder / "chat").pad_token_id)
    every = UNTIMED + steps + 1
    with tempfile.TemporaryDirectory(dir=folder) as out:
        if side == "trl":
            trl(folder, Path(out), every)
        else:
            ours(folder, Path(out), every, packing=side == "packed")
    parameters = AutoModelForCausalLM.from_pretrained(folder / "chat").num_parameters()
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return entrance.measured(steps) | {"parameters": parameters, "megabytes": megabytes}


def main() -> int:
    side, folder = sys.argv[1], Path(sys.argv[2])
    if side == "model":
        make_model(folder)
    else:
        print(json.dumps(measure(side, folder, int(sys.argv[3]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
