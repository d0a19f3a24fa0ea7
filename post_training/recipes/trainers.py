"""TRL's trainers, told to train on prepared data as it is; and ORPO, whose trainer in TRL is an experiment.

    mid, sft           trl.SFTTrainer
    preference  apo_zero, apo_down, dpo   Pairs, which is trl.DPOTrainer       kto   UnpairedPairs, trl.KTOTrainer
                orpo            OddsRatio, trl.SFTTrainer with the loss of pairs
    grpo               Sampled, which is trl.GRPOTrainer, with the rewards of grpo.py

A pair counts as one row of the batch, and so does each sampled answer.
"""

from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from post_training.prepare import Prepared
from post_training.recipes import grpo
from post_training.recipes.arguments import lora_arguments
from post_training.recipes.config import GrpoConfig, PreferenceConfig, RecipeConfig
from post_training.recipes.ranks import check_sharded
from smol_config import UserError

_PAIR = ["prompt_ids", "chosen_ids", "rejected_ids"]


def make_trainer(config: RecipeConfig, arguments: Any, prepared: Prepared) -> Any:
    """The trainer of a recipe, its model loaded. Raises UserError for too few rows, a model that does not load, and processes
    that would not shard."""
    rows, step = len(prepared.train), config.train.global_batch_size
    if isinstance(config, GrpoConfig):
        grpo.check_prompts(config, prepared)
        rows *= config.grpo.answers
    if rows < step:
        raise UserError(
            f"the data has {rows:,} rows and train.global_batch_size={step}, so that an epoch has no step; lower it"
        )
    settings = {
        "model": config.model,
        "args": arguments,
        "train_dataset": prepared.train,
        "eval_dataset": prepared.held_out,
        "processing_class": prepared.tokenizer,
        "peft_config": lora_arguments(config),
    }
    try:
        trainer = _of(config, settings, prepared.tokenizer.pad_token_id)
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # missing files, layers, kinds of attention
        raise UserError(f"model={config.model}: the trainer refuses it ({' '.join(str(error).split())[:300]})") from error
    check_sharded(config, trainer.accelerator)
    _reduce_in_fp32(trainer)
    return trainer


def _of(config: RecipeConfig, settings: dict[str, Any], pad: int) -> Any:
    if isinstance(config, GrpoConfig):
        return Sampled(**settings, reward_funcs=grpo.reward_functions(config, settings["processing_class"]))
    if not isinstance(config, PreferenceConfig):
        return Supervised(**settings)
    if config.preference.loss == "orpo":
        return OddsRatio(**settings, data_collator=DataCollatorForPreference(pad), weight=config.preference.beta)
    if config.preference.loss == "kto":
        return UnpairedPairs(**settings, data_collator=UnpairedCollator(pad, config.data.max_length))
    return Pairs(**settings)


def _reduce_in_fp32(trainer: Any) -> None:
    """accelerate lets FSDP2 sum gradients over ranks in the precision of the computation; masters deserve fp32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and trainer.args.bf16:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16
        )


class _AsPrepared:
    """What TRL's trainers do otherwise here: they take the data as it is, evaluate all of it, and write no model card."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return None

    def get_eval_dataloader(self: Any, *arguments: Any, **named: Any) -> Any:
        """All held-out rows; what training leaves out to keep batches whole, evaluation must not."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(*arguments, **named)  # type: ignore[misc]
        finally:
            self.args.dataloader_drop_last = True


class Supervised(_AsPrepared, SFTTrainer):
    """Cross-entropy over the labels of the whole global batch."""


class Pairs(_AsPrepared, DPOTrainer):
    """With c = beta (log p_c - log r_c) of the chosen answer and r of the rejected one: apo_zero 1 - sigmoid(c) + sigmoid(r);
    apo_down sigmoid(c) + 1 - sigmoid(c - r); dpo -log sigmoid(c - r)."""


class UnpairedCollator(DataCollatorForUnpairedPreference):
    """Each pair as a good and a bad answer; KL is estimated on the same answers, each moved on to another pair's prompt."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = []
        for answer in ("chosen_ids", "rejected_ids"):
            moved = [examples[-1], *examples[:-1]]
            rows += [
                {
                    "prompt_ids": pair["prompt_ids"],
                    "completion_ids": pair[answer],
                    "KL_completion_ids": other[answer],
                    "label": answer == "chosen_ids",
                }
                for pair, other in zip(examples, moved, strict=True)
            ]
        collated: dict[str, Any] = super().torch_call(rows)
        return collated


class UnpairedPairs(_AsPrepared, KTOTrainer):
    """KTO on pairs."""

    def _set_signature_columns_if_needed(self: Any) -> None:
        self._signature_columns = _PAIR


class OddsRatio(_AsPrepared, SFTTrainer):
    """ORPO (Hong et al. 2024, equations 3, 6, 7): -log P(chosen) - weight x log sigmoid(log odds(chosen) - log odds(rejected)).

    log P is the mean over an answer's tokens, odds are P / (1 - P). TRL's own (experimental) ORPO trainer renders the data
    anew with a second stop token, trains the prompt too, and holds all logits in memory.
    """

    def __init__(self, *, weight: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.weight = weight

    def _set_signature_columns_if_needed(self: Any) -> None:
        self._signature_columns = _PAIR

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the pairs of a micro-batch; all have the same number of pairs."""
        mask = inputs["completion_mask"]
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(mask == 0, -100),
            use_cache=False,
            fused_lm_head=True,
        )
        chosen, rejected = (outputs.log_probs.sum(1) / mask[:, 1:].sum(1)).chunk(2)
        log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        loss = (-chosen - self.weight * logsigmoid(log_odds)).mean()
        self._count(model, inputs["attention_mask"].sum(), chosen, log_odds)
        return loss

    def _count(self, model: Any, tokens: Any, chosen: Any, log_odds: Any) -> None:
        """The metrics that TRL's trainers have of pairs."""
        mode = "train" if model.training else "eval"
        gathered = self.accelerator.gather_for_metrics
        if mode == "train":
            self._total_train_tokens += int(gathered(tokens).sum())
        found: dict[str, torch.Tensor] = {"nll": -chosen, "log_odds": log_odds, "rewards/accuracies": (log_odds > 0).float()}
        for name, values in found.items():
            self._metrics[mode][name].append(gathered(values.detach()).mean().item())


class Sampled(_AsPrepared, GRPOTrainer):
    """GRPO, which counts tokens where the others do, and tells of each reward which share of the groups it leaves equal."""

    def _generate_and_score_completions(self: Any, inputs: Any) -> Any:
        before = self.state.num_input_tokens_seen
        output = super()._generate_and_score_completions(inputs)
        self._total_train_tokens += self.state.num_input_tokens_seen - before
        self._metrics["eval"].pop("frac_reward_zero_std", None)  # of groups of one
        return output

    def _calculate_rewards(self: Any, *given: Any) -> torch.Tensor:
        found: torch.Tensor = super()._calculate_rewards(*given)
        if self.model.training:
            groups = found.view(-1, self.num_generations, found.shape[1])
            low, high = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
            for name, equal, applies in zip(self.reward_func_names, (low == high).T, (low <= high).T, strict=True):
                if applies.any():
                    self._metrics["train"][f"rewards/{name}/equal_groups"].append(equal[applies].float().mean().item())
        return found


def _log1mexp(values: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, by whichever of the two forms is exact there (Maechler 2012)."""
    near = values > -0.693
    return torch.where(
        near,
        torch.log(-torch.expm1(values.clamp(max=-1e-7))),
        torch.log1p(-torch.exp(values.clamp(max=-0.6))),
    )
