"""`--dry-run`: what a recipe's configuration means, or why it cannot be trained. Nothing is loaded, written or fetched.

How many rows, and so steps, an epoch has is known once the data is prepared, which the run itself does: rows that do not fit
are left out, others packed. Before that they are null, unless the configuration says `steps`. `preview` looks into the data.
"""

import json
import math
from pathlib import Path
from typing import Any

from post_training.prepare import MANIFEST
from post_training.recipes.config import GrpoConfig, RecipeConfig
from post_training.recipes.ranks import accumulation, processes, sharding
from post_training.sources import find, on_the_hub
from post_training.template import check_folder, read_template
from smol_config import UserError, to_yaml
from smol_console import short

Plan = dict[str, Any]
"""recipe; parameters of the model, adapters aside; rows of an epoch, train_steps, train_tokens (of the data, sampled answers
aside), each null where not known; config."""


def plan(recipe: str, config: RecipeConfig) -> Plan:
    """Raises UserError for a model, template, local source, layout or batch with which the run would not begin."""
    check_folder(config.model)
    if config.data.template != "model":
        read_template(config.data.template)
    for source in [*config.data.sources, *config.data.held_out]:
        if not on_the_hub(source):
            find(source)
    accumulation(config, processes())
    sharding(config)
    rows, tokens = _prepared(Path(config.train.output_dir))
    steps = config.train.steps or (_steps(config, rows) if rows else None)
    trained = round(tokens / rows * steps * _rows_a_step(config)) if rows and tokens and steps else None
    return {
        "recipe": recipe,
        "parameters": _parameters(Path(config.model)),
        "rows": rows,
        "train_steps": steps,
        "train_tokens": trained,
        "config": config.model_dump(mode="json"),
    }


def text(found: Plan, config: RecipeConfig) -> str:
    """The configuration, and the plan in words."""
    units = {"rows": "rows an epoch", "train_steps": "steps", "train_tokens": "tokens"}
    parts = [f"{short(found['parameters'])} parameters"]
    parts += [f"{found[key]:,} {unit}" for key, unit in units.items() if found[key]]
    if unknown := [unit for key, unit in units.items() if not found[key]]:
        parts.append(f"{', '.join(unknown)} known once the data is prepared")
    return f"{to_yaml(config)}\n{found['recipe']} of {config.model}: {'; '.join(parts)}"


def _prepared(run: Path) -> tuple[int | None, int | None]:
    """Rows and tokens of the run's data, where it is prepared."""
    try:
        train = json.loads((run / "data" / MANIFEST).read_text(encoding="utf8"))["train"]
    except FileNotFoundError:
        return None, None
    return int(train["rows"]), int(train["tokens"])


def _rows_a_step(config: RecipeConfig) -> int:
    answers = config.grpo.answers if isinstance(config, GrpoConfig) else 1
    return config.train.global_batch_size // answers


def _steps(config: RecipeConfig, rows: int) -> int:
    """The trainer's arithmetic: a rest of whole micro-batches is a step, a rest of prompts is left out."""
    if isinstance(config, GrpoConfig):
        an_epoch = rows // _rows_a_step(config)
    else:
        micro_batches = rows // (config.train.micro_batch_size * processes())
        an_epoch = math.ceil(micro_batches / accumulation(config, processes()))
    return math.ceil((config.train.epochs or 0) * an_epoch)


def _parameters(model: Path) -> int:
    """Of the folder's weights, from their headers."""
    from safetensors import SafetensorError, safe_open

    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise UserError(f"model={model} has no *.safetensors; give a Hugging Face folder with its weights")
    count = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"model={model}: {file.name} is damaged ({error}); fetch or write it again") from error
    return count
