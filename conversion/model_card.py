"""README.md of an export: metadata that the Hub reads, the architecture, how to load it, how it was trained, what was measured.

Everything in it is read from the checkpoint, its run and parity.json; what is not known is left out. Paths of the machine that
trained are not told: cards are published.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from conversion.families import SMOLLM3, Family
from conversion.training_record import HeldOut, Record, RunRecord, tokens_by_dataset
from smol_console import percent
from smol_model.config import ModelConfig


@dataclass(frozen=True)
class Exported:
    """What is exported, and how."""

    model: ModelConfig
    family: Family
    sequence_length: int
    """In training, in tokens."""
    yarn_factor: float
    dtype: str
    license: str | None
    """An identifier of the Hub."""


def model_card(name: str, export: Exported, record: Record, parity: Mapping[str, Any]) -> str:
    """The card's text; `parity` holds the figures of parity.json."""
    origin = record.origin
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=export.license,
        base_model=origin.name if origin and origin.on_hub else None,
        datasets=sorted(set(record.repositories.values())) or None,
        tags=[export.family.name, "megatron-core", "pretraining"],
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        _opening(record),
        f"## Model\n\n{_architecture(export)}",
        f"## Use\n\n{_how_to_load(name)}",
        _readers(export),
        _training(record),
        _held_out(record.held_out),
        f"## Equal to its checkpoint\n\n{_parity(parity)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(record: Record) -> str:
    origin = record.origin
    if not record.runs:
        assert origin is not None, "a checkpoint without a run was converted from somewhere"
        return f"The weights of {origin.name}, converted to Megatron-Core's format and back. They were not trained further."
    if origin is None:
        return "A base language model, trained with Megatron-Core from random weights and exported to Hugging Face format."
    began = f"from the weights of {origin.name}" if origin.published else f"from a checkpoint of an earlier run, {origin.name}"
    return f"A base language model, trained further with Megatron-Core {began}, and exported to Hugging Face format."


def _architecture(export: Exported) -> str:
    model, without_rope = export.model, export.model.layers_without_rope
    length = f"{export.sequence_length:,} tokens"
    if export.yarn_factor > 1:
        length += f", read with YaRN up to {int(export.sequence_length * export.yarn_factor):,}"
    rope = f"{model.rope_theta:,.0f}"
    if model.llama3_rope_factor:
        rope += f", its slowest frequencies divided by {model.llama3_rope_factor:g} as in Llama 3.1"
    rows = {
        "Architecture": f"{export.family.architecture} (transformers)",
        "Parameters": f"{model.parameters:,}",
        "Layers": model.num_layers,
        "Hidden size": model.hidden_size,
        "Feed-forward size": f"{model.ffn_hidden_size:,} (SwiGLU)",
        "Attention heads": f"{model.num_attention_heads}, of width {model.kv_channels}",
        "Key-value heads": model.query_groups,
        "Norms on queries and keys": "yes" if model.qk_norm else None,
        "Biases": "on queries, keys and values" if model.qkv_bias else None,
        "Vocabulary": f"{model.vocab_size:,}",
        "Embeddings": "tied with the output" if model.tie_embeddings else "separate from the output",
        "Rotary base": rope,
        "Layers without rotary embedding": f"{len(without_rope)} of {model.num_layers}" if without_rope else None,
        "Sequence length": length,
        "Weights": export.dtype,
    }
    return table(["", ""], [[title, value] for title, value in rows.items() if value is not None])


def _readers(export: Exported) -> str:
    """What a reader other than transformers would get wrong without a word."""
    if export.family is not SMOLLM3 or export.model.layers_without_rope == list(range(3, export.model.num_layers, 4)):
        return ""
    return (
        "llama.cpp leaves the rotary embedding out of every fourth layer of a SmolLM3, whatever its configuration says. This "
        "model leaves it out of other layers, so do not convert it to GGUF."
    )


# --- training --------------------------------------------------------------------------------------------------------------


def _training(record: Record) -> str:
    if not record.runs:
        return ""
    last = record.runs[-1]
    planned = f" of {last.planned_steps:,} planned" if last.planned_steps > last.steps else ""
    runs = f", in {len(record.runs)} runs that followed each other" if len(record.runs) > 1 else ""
    parts = [
        f"## Training\n\n{record.tokens:,} tokens{runs}; step {last.steps:,}{planned}.",
        _stages(record.runs),
        "Shares of the samples by dataset and stage, and the tokens that each dataset gave so far:",
        _mixture(record),
        table(["Run", "Optimizer", "Schedule", "Precision"], [_optimizer(run) for run in record.runs]),
    ]
    return "\n\n".join(parts)


def _stages(runs: Sequence[RunRecord]) -> str:
    rows = [
        [
            run.name,
            stage.name,
            f"{stage.steps:,}",
            f"{stage.tokens:,}",
            f"{stage.sequence_length:,}",
            ", then ".join(f"{size:,}" for size in stage.batch_sizes),
            f"{run.settings['model']['rope_theta']:,.0f}",
        ]
        for run in runs
        for stage in run.stages
    ]
    return table(["Run", "Stage", "Steps", "Tokens", "Sequence length", "Sequences in a step", "Rotary base"], rows)


def _mixture(record: Record) -> str:
    stages = [stage for run in record.runs for stage in run.stages]
    rows = []
    for name, tokens in tokens_by_dataset(record.runs).items():
        repository = record.repositories.get(name)
        linked = f"[{name}](https://huggingface.co/datasets/{repository})" if repository else name
        shares = [percent(stage.shares[name]) if name in stage.shares else "" for stage in stages]
        rows.append([linked, *shares, f"{tokens:,}"])
    several = len(record.runs) > 1
    titles = [f"{run.name}: {stage.name}" if several else stage.name for run in record.runs for stage in run.stages]
    return table(["Dataset", *titles, "Tokens"], rows)


def _optimizer(run: RunRecord) -> list[str]:
    optim, train = run.settings["optim"], run.settings["train"]
    betas = " and ".join(f"{beta:g}" for beta in optim["betas"])
    return [
        run.name,
        f"{optim.get('optimizer', 'adamw')}, betas {betas}, weight decay {optim['weight_decay']:g}, gradient norm clipped at "
        f"{optim['clip_grad_norm']:g}",
        _schedule(optim),
        str(train.get("precision", "bf16")),
    ]


def _schedule(optim: Mapping[str, Any]) -> str:
    schedule, peak = optim["schedule"], f"{optim['learning_rate']:g}"
    words = [f"{schedule['kind']}, peak {peak}, warm-up until step {schedule['warmup_steps']:,}"]
    lowest = f"to {schedule['min_learning_rate']:g}"
    if schedule["kind"] == "wsd" and schedule["decay_steps"]:
        words.append(f"{schedule['decay_shape']} decay over the last {schedule['decay_steps']:,} steps {lowest}")
    if schedule["kind"] == "cosine":
        words.append(f"falling {lowest} at the end")
    if schedule["kind"] == "multi_step":
        steps = ", ".join(f"{step:,}" for step in schedule["milestones"])
        words.append(f"times {schedule['factor']:g} after steps {steps}")
    return ", ".join(words)


def _held_out(held_out: HeldOut | None) -> str:
    if held_out is None or not held_out.losses:
        return ""
    rows = [[name, f"{loss:.4f}", f"{math.exp(min(loss, 100)):.4g}"] for name, loss in held_out.losses.items()]
    figures = table(["Held-out set", "Loss (nats per token)", "Perplexity"], rows)
    return f"## Evaluation\n\nDuring training, at step {held_out.step:,}, on text that was not trained on:\n\n{figures}"


def _parity(parity: Mapping[str, Any]) -> str:
    perplexity, difference, tolerance = (parity[name] for name in ("perplexity", "max_logit_difference", "tolerance"))
    rows = [
        ["Largest difference of logits", f"{_figure(difference)} (tolerance {_figure(tolerance)})"],
        ["Same most likely token", f"{100 * parity['top1_agreement']:.4g} % of {parity['positions']:,} positions"],
        ["Perplexity of a fixed text", " and ".join(_figure(perplexity[side]) for side in ("megatron", "hf"))],
    ]
    return (
        "This folder was compared with the training checkpoint that it was made from, Megatron-Core's network against "
        "transformers', both in fp32 with the folder's weights; every tensor was compared bit for bit. `parity.json` has all "
        f"figures.\n\n{table(['', ''], rows)}"
    )


def _figure(value: float | None) -> str:
    """parity.json has null for what is no finite number, as after --allow-nan."""
    return "not finite" if value is None else f"{value:.5g}"


# --- merges ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merged:
    """One model that went into a merge."""

    name: str
    hub: str | None
    """Its name on the Hub, where it has one."""
    parameters: str
    """Its weight, and what else the method takes of it."""


def merge_card(name: str, model_type: str, method: str, models: Sequence[Merged]) -> str:
    """The card of a merge; `model_type` as in config.json, `method` in words, ending in a full stop."""
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=[model.hub for model in models if model.hub] or None,
        tags=[model_type, "merge"],
    )
    return f"""---
{metadata.to_yaml()}
---

# {name}

{method}
It was not trained further. Configuration and tokenizer are the first model's.

{table(["model", "weight"], [[model.name, model.parameters] for model in models])}

{_how_to_load(name)}

`merge.json` holds the weights and the SHA-256 of every weight file that went in.
"""


# --- both ------------------------------------------------------------------------------------------------------------------


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; a vertical bar in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _how_to_load(name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("The lighthouse", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""
