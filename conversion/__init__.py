"""Megatron-Core checkpoint <-> Hugging Face folder, each export proven equal to its checkpoint before it gets its name.

    weights.py            THE weight table, both directions; grouped QKV and gate/up transforms
    families.py           ModelConfig <-> config.json: SmolLM3, Llama, Qwen2, Qwen3
    megatron_reader.py    a checkpoint's weights, one tensor at a time, without a model
    safetensors_files.py  Hugging Face weight files: streaming writer, lazy reader
    tokenizer_files.py    tokenizer folder or Hub name -> files and special ids
    networks.py           the model of each library, whole or with weights that come and go
    parity.py             logits, top-1, greedy continuations and perplexity of two models on the same tokens
    verify.py, to_hf.py, from_hf.py                   the commands
    model_card.py         README.md of an export; training_record.py is what it tells of the training
    inspect_weights.py    what is in a checkpoint or a folder, how two differ: inspect_{sources,numbers,text}.py
    merge.py, merge_recipe.py                         weighted sums of Hugging Face folders; other merges: merge_mergekit.py
    push.py, upload/      a Hugging Face folder -> the Hub, S3
    export.py             all checkpoints of a run while it trains: export_records.py is what is on disk,
                          background.py the children that do the work, service.py signals and patience,
                          watching.py what every process beside a run does

Everything runs on the CPU and holds about one tensor at a time, the comparison of logits included; `verify` holds both models
in fp32 where they fit (--memory).
"""

import smol_model  # noqa: F401  first: it lets megatron.core run on hosts without CUDA
from smol_config import UserError


class ConversionError(UserError):
    """A checkpoint or folder that cannot be converted as it stands."""


class ParityError(ConversionError):
    """The two sides do not compute the same."""


class Unreachable(ConversionError):
    """A place that does not answer as it should: the same command may succeed later, after `wait` seconds or more."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait
