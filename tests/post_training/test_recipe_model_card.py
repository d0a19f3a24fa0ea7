"""The card of a recipe's model: what the Hub reads, how servers take its answers apart, how it was trained, on what."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from post_training.recipes.config import RECIPES
from post_training.recipes.model_card import model_card
from smol_config import parse

MANIFEST: dict[str, Any] = {
    "train": {"datasets": [{"dataset": "tides", "mode": "think", "drawn": 1200, "tokens": 98_304, "share_of_tokens": 0.75}]},
    "versions": {"transformers": "5.23.0"},
}


def card(recipe: str, changes: dict[str, Any] | None = None, model: str = "/lab/runs/base") -> ModelCard:
    """Of step 40."""
    kind = {"preference": "preference", "grpo": "prompts"}.get(recipe, "chat")
    mapping: dict[str, Any] = {
        "model": model,
        "data": {
            "max_length": 4096,
            **({"loss_on": "all"} if recipe == "mid" else {}),
            "sources": [{"name": "tides", "kind": kind, "path": "harbour/tides"}],
        },
        "train": {"output_dir": "/lab/runs/pilot", "steps": 40, "global_batch_size": 32},
        "optim": {"learning_rate": 2e-5},
        **({"preference": {"loss": "apo_zero", "beta": 0.05}} if recipe == "preference" else {}),
        **({"grpo": {"answers": 8, "max_answer": 64}, "rewards": {"format": {"weight": 1.0}}} if recipe == "grpo" else {}),
        **(changes or {}),
    }
    config = parse(RECIPES[recipe], mapping, "test.yaml")
    return ModelCard(model_card(config, MANIFEST, 40, 98_304, "smollm3"))


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_metadata_is_what_the_hub_reads_and_the_machines_paths_are_not_told(recipe: str) -> None:
    found = card(recipe)
    assert found.data.tags == ["smollm3", "trl", recipe] and found.data.pipeline_tag == "text-generation"
    assert found.data.datasets == ["harbour/tides"] and found.data.base_model is None
    assert "# pilot, step 40" in found.text and "It began with base." in found.text and "/lab" not in str(found)
    assert "| tides | think | 1,200 | 98,304 | 75.0 % |" in found.text and "| learning rate | 2e-05, cosine |" in found.text


def test_a_model_of_the_hub_is_the_base_and_the_pushed_name_the_models() -> None:
    found = card("sft", {"checkpoint": {"push": "harbour/pilot-3b"}}, "/hub/models--harbour--sea-3b/snapshots/12ab")
    assert found.data.base_model == "harbour/sea-3b" and 'from_pretrained("harbour/pilot-3b")' in found.text
    assert 'from_pretrained("pilot")' in card("sft", {"checkpoint": {"push": "s3://bucket/pilot"}}).text


def test_servers_are_told_the_names_of_their_parsers_where_the_template_is_ours() -> None:
    parsers = "--reasoning-parser qwen3 --enable-auto-tool-choice --tool-call-parser hermes"
    assert parsers in card("sft").text
    data = {"max_length": 64, "loss_on": "all", "template": "chatml", "sources": [{"name": "a", "path": "harbour/tides"}]}
    assert parsers not in card("mid", {"data": data}).text


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("mid", "| trained | all tokens |"),
        ("sft", "| trained | assistant tokens |"),
        ("preference", "| loss | apo_zero, beta 0.05 |"),
        ("grpo", "| loss | dapo, 8 answers to a prompt |"),
    ],
)
def test_what_the_recipe_did_is_told(recipe: str, told: str) -> None:
    assert told in card(recipe).text and "LoRA" not in card(recipe).text
    assert "| adapters | LoRA of rank 4, alpha 8, merged |" in card(recipe, {"lora": {"rank": 4, "alpha": 8}}).text
