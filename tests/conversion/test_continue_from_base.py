"""Pre-training continued from a published base, the documented way, with a small Qwen3 that transformers made in its place.

from-hf -> configs/examples/continue_from_base.yaml on the checkpoint's run.yaml -> pretrain_smol.py on two ranks -> to-hf.
"""

import itertools
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from ranks import RankError, Ranks
from small_models import Command
from tiny_runs import REPOSITORY
from torch.nn.functional import cross_entropy

import pretrain_smol
from conversion.__main__ import main
from evaluation.held_out import held_out_loss
from smol_config import load
from smol_data.order import Order
from smol_data.shards import TokenDataset, Window
from smol_train.checkpoint_folder import read_model_config
from smol_train.config import RunConfig

EXAMPLE = REPOSITORY / "configs" / "examples" / "continue_from_base.yaml"
LENGTH, BATCH, STEPS, HELD_OUT = 64, 8, 4, 8


@dataclass(frozen=True)
class Continued:
    """The base's folder, the run's configuration file and folder."""

    base: Path
    config: Path
    run: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]


def make_base(folder: Path, tokenizer: Path) -> None:
    """A Qwen3 of 256 positions with random weights in fp32; more embedding rows than the tokenizer has ids."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=1040,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def write_config(path: Path, root: Path, imported: Path, tokens: Path) -> None:
    """As docs/continue_from_base.md has it: the example, with the imported checkpoint's run.yaml in place of its model."""
    example = yaml.safe_load(EXAMPLE.read_text())
    del example["base"], example["model"], example["data"]["tokenizer"]
    datasets = {"own-text": str(tokens / "docs"), "fineweb-edu": str(tokens / "code")}
    held_out = {"own-text": str(tokens / "held_out" / "docs")}
    stages = [{"name": "continued", "tokens": STEPS * BATCH * LENGTH, "weights": {"own-text": 0.75, "fineweb-edu": 0.25}}]
    own: dict[str, dict[str, Any]] = {
        "start_from": {"checkpoint": str(imported.parent)},
        "data": {"sequence_length": LENGTH, "datasets": datasets, "held_out": held_out, "stages": stages},
        "train": {
            "output_dir": str(root / "run"),
            "global_batch_size": BATCH,
            "micro_batch_size": 2,
            "precision": "fp32",
        },
        "optim": {"learning_rate": 1e-3, "schedule": {"kind": "cosine", "warmup_steps": 1}},
        "checkpoint": {"async_save": False},
        "evaluation": {"windows": HELD_OUT},
    }
    sections = {name: example.get(name, {}) | own.get(name, {}) for name in example | own}
    path.write_text(yaml.safe_dump({"base": str(imported / "run.yaml"), **sections}))


@pytest.fixture(scope="module")
def continued(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    root = tmp_path_factory.mktemp("continued")
    make_base(root / "base", corpus / "tokenizer")
    imported = root / "imported" / "iter_0000000"
    assert main(["from-hf", str(root / "base"), str(imported)]) == 0
    write_config(root / "run.yaml", root, imported, corpus / "tokens")
    assert ranks.run(pretrain_smol.train, 2, config_path=str(root / "run.yaml"), overrides=[]) == [0, 0]
    return Continued(root / "base", root / "run.yaml", root / "run")


def document_losses(model: torch.nn.Module, window: Window) -> list[torch.Tensor]:
    """transformers' own losses of the targets inside a window's documents."""
    ids, losses = torch.from_numpy(window.tokens.astype(np.int64)), []
    for first, end in itertools.pairwise(sorted({0, *window.document_ends.tolist(), LENGTH})):
        labels = ids[first + 1 : end + (end not in window.document_ends)]  # the last token's next is another document's
        if len(labels):
            logits = model(ids[None, first:end]).logits[0, : len(labels)]
            losses.append(cross_entropy(logits, labels, reduction="none"))
    return losses


@torch.no_grad()
def test_the_first_loss_is_the_base_models_own(continued: Continued) -> None:
    """Before any update, on the very windows of the first step: the import and everything after it is right."""
    config = load(RunConfig, continued.config)
    model = transformers.AutoModelForCausalLM.from_pretrained(continued.base)
    datasets = {name: TokenDataset(folder, LENGTH) for name, folder in config.data.datasets.items()}
    order = Order(config.segments, config.data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    places = order.locate_range(0, BATCH)
    losses = torch.cat(
        [loss for place in places for loss in document_losses(model, datasets[place.dataset].window(place.window))]
    )
    assert {place.dataset for place in places} == {"own-text", "fineweb-edu"}
    first = continued.metrics[0]
    assert (first["step"], len(continued.metrics)) == (1, STEPS)
    assert first["train/loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert abs(losses.mean().item() - math.log(1040)) > 0.1, "not what any model gives at first"


def test_the_run_has_the_bases_architecture_and_a_shorter_window(continued: Continued) -> None:
    model = read_model_config(continued.run / f"iter_{STEPS:07d}")
    assert (model.qk_norm, model.no_rope, model.tie_embeddings, model.vocab_size) == (True, None, False, 1040)
    assert (model.max_sequence_length, load(RunConfig, continued.config).data.sequence_length) == (256, LENGTH)


def test_the_export_is_the_trained_model_and_names_its_base(continued: Continued, tmp_path: Path, command: Command) -> None:
    ran = command("to-hf", continued.run, tmp_path / "hf", "--dtype", "fp32")
    assert ran.code == 0, ran.err
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    config = load(RunConfig, continued.config)
    loss, _ = held_out_loss(model, config.data.held_out["own-text"], LENGTH, HELD_OUT)
    assert loss == pytest.approx(continued.metrics[-1]["eval/loss/own-text"], abs=1e-5)
    base = transformers.AutoModelForCausalLM.from_pretrained(continued.base)
    assert loss < held_out_loss(base, config.data.held_out["own-text"], LENGTH, HELD_OUT)[0] - 0.05, "it has learnt"
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "trained further with Megatron-Core from the weights of base, and exported" in card


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.sequence_length=512", "data.sequence_length=512 is longer than model.max_sequence_length=256"),
        ("start_from.optimizer=true", "holds weights only; set start_from.optimizer=false"),
        ("model.hidden_size=128", "holds another architecture (model.hidden_size: checkpoint 64, config 128)"),
        ("data.tokenizer={other}", "was made by tokenizer"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(
    override: str, sentence: str, continued: Continued, byte_tokenizer: Path, tmp_path: Path, ranks: Ranks
) -> None:
    settings = [override.format(other=byte_tokenizer), f"train.output_dir={tmp_path / 'run'}", "parallel.tensor=1"]
    settings.append("parallel.sequence=false")
    with pytest.raises(RankError, match=re.escape(sentence)):
        ranks.run(pretrain_smol.train, 1, config_path=str(continued.config), overrides=settings)
