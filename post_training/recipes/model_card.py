"""README.md of a recipe's model: how to talk to it, what its parsers are called, how it was trained and on what.

Everything in it is read from the run's configuration and the manifest of its data. Paths of the machine are not told: cards are
published. checkpoints.py writes it into each hf/step_N.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from conversion.model_card import table
from conversion.training_record import hub_name
from post_training.recipes.config import GrpoConfig, MidConfig, PreferenceConfig, RecipeConfig
from post_training.template import REASONING_PARSER, TOOL_PARSER


def model_card(config: RecipeConfig, manifest: Mapping[str, Any], step: int, tokens: int, model_type: str) -> str:
    """The card's text; `manifest` is that of the data (prepare.py), `model_type` as in config.json."""
    start, push = Path(config.model), config.checkpoint.push
    on_hub = hub_name(start)
    name = push if push and "://" not in push else Path(config.train.output_dir).name
    recipe = _recipe(config)
    repositories = {source.path for source in config.data.sources if not Path(source.path).exists()}
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=on_hub,
        datasets=sorted(repositories) or None,
        tags=[model_type, "trl", recipe],
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}, step {step:,}",
        f"{_SUMMARIES[recipe]} It began with {on_hub or start.name}.",
        f"## Use\n\n{_use(config, name)}",
        f"## Training\n\n{_training(config, manifest, step, tokens)}",
        f"## Data\n\n{_data(manifest)}",
    ]
    return "\n\n".join(sections) + "\n"


_SUMMARIES = {
    "mid": "A base model trained further on reasoning, on all tokens (mid-training).",
    "sft": "A chat model, fine-tuned on the assistant's turns (SFT).",
    "preference": "A chat model, trained on pairs of a better and a worse answer.",
    "grpo": "A chat model, trained on answers of its own that code rewarded (GRPO).",
}


def _recipe(config: RecipeConfig) -> str:
    if isinstance(config, MidConfig):
        return "mid"
    if isinstance(config, PreferenceConfig):
        return "preference"
    return "grpo" if isinstance(config, GrpoConfig) else "sft"


def _use(config: RecipeConfig, name: str) -> str:
    modes = ""
    if config.data.template == "hybrid":
        modes = (
            "\n\nIt thinks before it answers, unless `/no_think` stands in the system message or the template is given "
            "`enable_thinking=False`. Thoughts stand in `<think>`, calls of tools in `<tool_call>`; servers take them apart "
            f"by\n\n    vllm serve {name} --reasoning-parser {REASONING_PARSER} --enable-auto-tool-choice "
            f"--tool-call-parser {TOOL_PARSER}"
        )
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
chat = [{{"role": "user", "content": "Which tide comes after the flood?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
```{modes}"""


def _training(config: RecipeConfig, manifest: Mapping[str, Any], step: int, tokens: int) -> str:
    train, optim = config.train, config.optim
    rows: list[tuple[str, object]] = [
        ("steps", f"{step:,}"),
        ("tokens of the model's input", f"{tokens:,}"),
        ("batch", f"{train.global_batch_size:,} {'answers' if isinstance(config, GrpoConfig) else 'rows'}"),
        ("longest row, tokens", f"{config.data.max_length:,}"),
        ("learning rate", f"{optim.learning_rate:g}, {optim.schedule.kind}"),
        ("precision", f"{train.precision}, with fp32 weights and optimizer"),
    ]
    if isinstance(config, PreferenceConfig):
        rows.insert(0, ("loss", f"{config.preference.loss}, beta {config.preference.beta:g}"))
    elif isinstance(config, GrpoConfig):
        rows.insert(0, ("loss", f"{config.grpo.loss}, {config.grpo.answers} answers to a prompt"))
    else:
        rows += [("packed", "yes" if config.data.packing else "no"), ("trained", f"{config.data.loss_on} tokens")]
    if config.lora:
        rows.append(("adapters", f"LoRA of rank {config.lora.rank}, alpha {config.lora.alpha}, merged"))
    versions = {"trl": version("trl"), **manifest["versions"]}
    rows.append(("versions", ", ".join(f"{package} {versions[package]}" for package in ("trl", "transformers"))))
    return table(["", ""], rows)


def _data(manifest: Mapping[str, Any]) -> str:
    rows = [
        [one["dataset"], one["mode"], f"{one['drawn']:,}", f"{one['tokens']:,}", f"{100 * one['share_of_tokens']:.1f} %"]
        for one in manifest["train"]["datasets"]
    ]
    return table(["dataset", "mode", "samples in a pass", "tokens", "share of tokens"], rows)
