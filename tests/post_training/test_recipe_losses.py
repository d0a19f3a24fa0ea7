"""The losses of all recipes against formulas written down here, with plain transformers models beside TRL's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import sums, write_rows
from recipe_kit import metrics, run, write_config
from torch.nn.functional import cross_entropy, logsigmoid

from post_training.recipes.config import RECIPES
from smol_config import load


@pytest.fixture
def trainer_of(tmp_path: Path) -> Iterator[Any]:
    """Makes the trainer of a configuration, without training."""
    from post_training.prepare import prepare
    from post_training.recipes.arguments import training_arguments
    from post_training.recipes.trainers import make_trainer

    def make(recipe: str, path: Path, *overrides: str) -> Any:
        config = load(RECIPES[recipe], path, overrides)
        arguments = training_arguments(config)
        return make_trainer(config, arguments, prepare(config, Path(config.train.output_dir) / "data"))

    yield make


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def move_weights(model: Any) -> None:
    """Away from where it started, so that no ratio to the reference is 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


# --- mid, sft ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["sft", "mid"])
def test_the_first_loss_is_the_one_of_plain_transformers(recipe: str, tmp_path: Path, chat_folder: Path) -> None:
    """sft: the assistant's tokens alone, with the mask of apply_chat_template; mid: all. One mean over the whole batch."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    template = {"sft": "hybrid", "mid": "chatml"}[recipe]
    changes = {"data": {"packing": False, "template": template}, "train": {"steps": 1, "global_batch_size": 48}}
    assert run(recipe, write_config(tmp_path, recipe, chat_folder, changes)) == 0
    logged = metrics(tmp_path / "run")[0]["train/loss"]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/hf/step_1")
    model, total, count = plain(chat_folder), 0.0, 0
    for row in Dataset.from_json(str(tmp_path / "sums.jsonl"), cache_dir=str(tmp_path / "cache")):
        chat = tokenizer.apply_chat_template(
            row["messages"],
            return_assistant_tokens_mask=True,
            return_dict=True,
            today_date="01 July 2025",
            enable_thinking=False,
        )
        ids, mask = torch.tensor(chat["input_ids"]), torch.tensor(chat["assistant_masks"]).bool()
        targets = ids.masked_fill(~mask, -100) if recipe == "sft" else ids
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        total += float(cross_entropy(logits[:-1], targets[1:], ignore_index=-100, reduction="sum"))
        count += int((targets[1:] != -100).sum())
    assert count > 0 and logged == pytest.approx(total / count, rel=1e-5)  # fp32, sums in another order


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_samples_train_like_samples_alone(attention: str, trainer_of: Any, tmp_path: Path, chat_folder: Path) -> None:
    """Loss and gradients of the same samples, packed and not: no sample sees another, in layers with positions and without
    (NoPE); no token is lost."""
    found = []
    for packing in (True, False):
        changes = {"data": {"packing": packing}, "train": {"micro_batch_size": 2, "output_dir": str(tmp_path / str(packing))}}
        trainer = trainer_of("sft", write_config(tmp_path, "sft", chat_folder, changes), f"train.attention={attention}")
        assert trainer.model.config.no_rope_layers == [1, 0] and trainer.model.config._attn_implementation == attention
        batches = list(trainer.get_train_dataloader())
        assert sum(len(batch["input_ids"]) for batch in batches) == (len(batches) if packing else 48)
        targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        loss = sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=targets) for batch in batches)
        loss.backward()
        gradients = [layer.self_attn.q_proj.weight.grad for layer in trainer.model.model.layers]
        found.append((targets, float(loss.detach()), torch.stack(gradients)))
    (packed_targets, packed, packed_gradients), (targets, alone, gradients) = found
    assert packed_targets == targets and packed == pytest.approx(alone, rel=1e-6)
    assert float((packed_gradients - gradients).abs().max()) < 1e-6 < float(gradients.abs().amax((1, 2)).min())


def test_every_held_out_row_is_evaluated_and_no_micro_batch_trained_on_is_short(
    trainer_of: Any, tmp_path: Path, chat_folder: Path
) -> None:
    held_out = [{"name": "held", "path": str(write_rows(tmp_path / "held.jsonl", sums(5, first=100)))}]
    changes = {"data": {"packing": False, "held_out": held_out}, "train": {"micro_batch_size": 5, "global_batch_size": 5}}
    trainer = trainer_of("sft", write_config(tmp_path, "sft", chat_folder, changes))
    trainer.args.per_device_eval_batch_size = 2
    assert [len(batch["input_ids"]) for batch in trainer.get_eval_dataloader()] == [2, 2, 1]
    assert [len(batch["input_ids"]) for batch in trainer.get_train_dataloader()] == [5] * 9  # of 48 rows


# --- preference --------------------------------------------------------------------------------------------------------------


def answers(model: Any, batch: dict[str, Any], mean: bool = False) -> torch.Tensor:
    """Log-probability of each answer of the batch, chosen ones first; with `mean` per token."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    found = logits[:, :-1].gather(2, batch["input_ids"][:, 1:, None])[:, :, 0]
    mask = batch["completion_mask"][:, 1:]
    return (found * mask).sum(1) / (mask.sum(1) if mean else 1)


def assert_prepared_answers(batch: dict[str, Any], data: Path) -> None:
    """What the batch counts as answers are the chosen ones of the prepared pairs, whole, and then the rejected ones."""
    from datasets import Dataset

    rejected = {tuple(row["chosen_ids"]): row["rejected_ids"] for row in Dataset.from_file(str(data / "train.arrow"))}
    counted = [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    assert len(counted) == 8 and [rejected[tuple(chosen)] for chosen in counted[:4]] == counted[4:]


def apo_zero(chosen: Any, rejected: Any, beta: float) -> Any:
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Any, rejected: Any, beta: float) -> Any:
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def dpo(chosen: Any, rejected: Any, beta: float) -> Any:
    return -logsigmoid(beta * (chosen - rejected))


@pytest.mark.parametrize("formula", [apo_zero, apo_down, dpo])
def test_losses_of_ratios_to_the_start_are_their_formulas(
    formula: Any, trainer_of: Any, tmp_path: Path, chat_folder: Path
) -> None:
    path = write_config(tmp_path, "preference", chat_folder, {"train": {"micro_batch_size": 4, "global_batch_size": 4}})
    trainer = trainer_of("preference", path, f"preference.loss={formula.__name__}")
    move_weights(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = float(trainer.compute_loss(trainer.model, batch).detach())
    assert_prepared_answers(batch, tmp_path / "run/data")
    ratios = answers(trainer.model.eval(), batch) - answers(plain(chat_folder), batch)
    assert float(ratios.abs().min()) > 0.01
    assert loss == pytest.approx(float(formula(*ratios.chunk(2), 0.5).mean()), rel=1e-5)


def test_kto_compares_with_the_same_answers_at_other_prompts(trainer_of: Any, tmp_path: Path, chat_folder: Path) -> None:
    path = write_config(tmp_path, "preference", chat_folder, {"train": {"micro_batch_size": 4, "global_batch_size": 4}})
    trainer = trainer_of("preference", path, "preference.loss=kto")
    move_weights(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["label"].tolist() == [True] * 4 + [False] * 4
    texts = [trainer.processing_class.batch_decode(batch[f"{kind}input_ids"]) for kind in ("", "KL_")]
    (asked, answered), (others_asked, others_answered) = (
        zip(*(text.split("</think>", 1) for text in half), strict=True) for half in texts
    )
    bare = [[text.replace(trainer.processing_class.pad_token, "") for text in half] for half in (answered, others_answered)]
    assert asked == others_asked
    assert bare[1] == [bare[0][i] for i in (3, 0, 1, 2, 7, 4, 5, 6)]

    other = {key.removeprefix("KL_"): value for key, value in batch.items() if key.startswith("KL_")}
    loss = float(trainer.compute_loss(trainer.model, batch).detach())
    start, model = plain(chat_folder), trainer.model.eval()
    kl = (answers(model, other) - answers(start, other)).mean().clamp(min=0)
    chosen, rejected = (answers(model, batch) - answers(start, batch)).chunk(2)
    expected = torch.cat([1 - torch.sigmoid(0.5 * (chosen - kl)), 1 - torch.sigmoid(0.5 * (kl - rejected))]).mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_orpo_is_its_formula(trainer_of: Any, tmp_path: Path, chat_folder: Path) -> None:
    path = write_config(tmp_path, "preference", chat_folder, {"train": {"micro_batch_size": 4, "global_batch_size": 4}})
    trainer = trainer_of("preference", path, "preference.loss=orpo")
    move_weights(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = float(trainer.compute_loss(trainer.model, batch).detach())
    assert_prepared_answers(batch, tmp_path / "run/data")
    chosen, rejected = answers(trainer.model.eval(), batch, mean=True).exp().double().chunk(2)
    odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    expected = -chosen.log() - 0.5 * torch.log(torch.sigmoid(torch.log(odds_ratio)))
    assert loss == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("loss", ["apo_zero", "apo_down", "dpo", "kto", "orpo"])
def test_every_loss_on_pairs_falls_and_prefers_the_chosen_answers(loss: str, tmp_path: Path, chat_folder: Path) -> None:
    changes = {
        "train": {"micro_batch_size": 4, "global_batch_size": 4, "steps": 6},
        "optim": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 6},
        "preference": {"loss": loss},
    }
    assert run("preference", write_config(tmp_path, "preference", chat_folder, changes)) == 0
    first, *_, last = metrics(tmp_path / "run")
    assert last["train/loss"] < first["train/loss"] - 0.02 and last["train/grad_norm"] > 0
    assert last["tokens"] > 5 * first["tokens"]
    preferred = last["train/log_odds"] if loss == "orpo" else last["train/rewards/margins"]
    assert preferred > 0
