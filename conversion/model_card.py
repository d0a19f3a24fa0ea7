"""README.md of an export: metadata that the Hub reads, the architecture, what it was trained on so far, how to load it."""

from collections.abc import Sequence

import yaml

from conversion.families import Family
from smol_model.config import ModelConfig


def model_card(name: str, model: ModelConfig, family: Family, sequence_length: str, step: int, tokens: int) -> str:
    """The card's text; `step` in optimizer steps, `tokens` trained on, `sequence_length` in words."""
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [family.name, "pretraining"],
    }
    without_rope = model.layers_without_rope
    rows = {
        "Architecture": f"{family.architecture} (transformers)",
        "Parameters": f"{model.parameters:,}",
        "Layers": model.num_layers,
        "Hidden size": model.hidden_size,
        "Feed-forward size": f"{model.ffn_hidden_size:,} (SwiGLU)",
        "Attention heads": f"{model.num_attention_heads}, of width {model.kv_channels}",
        "Key-value heads": model.query_groups,
        "Vocabulary": f"{model.vocab_size:,}",
        "Embeddings": "tied with the output" if model.tie_embeddings else "separate from the output",
        "Rotary base": f"{model.rope_theta:,.0f}",
        "Layers without rotary embedding": f"{len(without_rope)} of {model.num_layers}",
        "Sequence length": sequence_length,
        "Training steps": f"{step:,}",
        "Training tokens": f"{tokens:,}",
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {title} | {value} |" for title, value in rows.items())])
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {name}

A base language model, trained with Megatron-Core and exported to Hugging Face format.

{table}

{_how_to_load(name)}

`parity.json` compares this folder with the training checkpoint that it was made from: logits position by position, top-1
agreement and perplexity of both.
"""


def merge_card(name: str, model_type: str, weights: Sequence[tuple[str, float]]) -> str:
    """The card of a linear merge; `weights` beside the models' names, `model_type` as in config.json."""
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [model_type, "merge"],
    }
    table = "\n".join(["| model | weight |", "| --- | --- |", *(f"| {title} | {weight:.9g} |" for title, weight in weights)])
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {name}

A linear merge: every tensor is the weighted sum of the same tensor of these models, added in fp32 and rounded once.
It was not trained further. Configuration and tokenizer are the first model's.

{table}

{_how_to_load(name)}

`merge.json` holds the weights and the SHA-256 of every weight file that went in.
"""


def _how_to_load(name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("The lighthouse", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""
