"""What a recipe's YAML says beside `model:` and `data:`. Sections have the names and the words of pre-training's.

    mid          continued pre-training on all tokens          MidConfig
    sft          the assistant's turns                         SftConfig
    preference   APO, DPO, KTO, ORPO on pairs                  PreferenceConfig
    grpo         answers sampled and judged                    GrpoConfig, with grpo_config.py

Defaults that are SmolLM3's come from its published recipes (alignment-handbook 925acdf: mid.yaml, sft.yaml, apo.yaml).
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from post_training.config import PreparationConfig
from post_training.recipes.grpo_config import Grpo
from post_training.rewards import Rewards
from smol_config import Section, nearest

Precision = Literal["bf16", "fp32"]


class Train(Section):
    """What the loop does."""

    output_dir: str
    """Folder of the run: data/ (prepared), iter_N/ (checkpoints), hf/step_N (models), metrics.jsonl, tensorboard/."""
    epochs: PositiveFloat | None = None
    """Passes through the mixture; give it or `steps`."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    micro_batch_size: PositiveInt = 1
    """Rows (packed, or samples, or pairs, or sampled answers) in one forward pass of one process."""
    global_batch_size: PositiveInt
    """Rows in one step of all processes; a multiple of micro_batch_size x processes."""
    seed: NonNegativeInt = 0
    """Of the order of rows in each epoch, and of LoRA's initial weights; the mixture has data.seed."""
    precision: Precision = "bf16"
    """bf16: computed in bf16, with fp32 weights, gradients and optimizer; fp32: everything."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """All keep packed samples apart; sdpa and eager hold a mask of max_length squared, so 64k wants FlashAttention."""
    activation_checkpointing: bool = True
    """Compute activations again in the backward pass, and hold those between layers alone."""
    accelerate: str | None = None
    """How several processes share the work: ddp, fsdp2, zero3 (configs/accelerate), or the path of a file of accelerate's own
    format. null: ddp."""

    def problems(self) -> list[str]:
        found = []
        if (self.epochs is None) == (self.steps is None):
            found.append(f"epochs={self.epochs} and steps={self.steps}: set one of them")
        if self.global_batch_size % self.micro_batch_size:
            found.append(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            )
        return found


class Schedule(Section):
    """Learning rate by step: linear warm-up from 0 to the peak, then `kind`."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """linear ends at 0."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Of all steps."""
    min_share: float = Field(default=0.1, ge=0, le=1)
    """cosine only: of the peak, where it ends."""


class Optim(Section):
    """AdamW and its schedule."""

    learning_rate: PositiveFloat
    """Peak of the schedule."""
    schedule: Schedule = Schedule()
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    clip_grad_norm: PositiveFloat = 0.2
    """Largest global gradient norm; SmolLM3's value."""

    def problems(self) -> list[str]:
        if not all(0 <= beta < 1 for beta in self.betas):
            return [f"betas={list(self.betas)} must be at least 0 and below 1"]
        return []


class Checkpoint(Section):
    """When checkpoints are saved. Each becomes a model in hf/step_N as well; the run's end always is one."""

    every_steps: PositiveFloat = 0.2
    """Steps between them; below 1, a share of the whole run."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept on disk; models in hf/ stay."""
    push: str | None = None
    """Where each model goes too, as `python -m conversion push` has it: namespace/name of the Hub (branch step-N), or a URL of
    which step_N becomes a folder."""

    def problems(self) -> list[str]:
        if self.every_steps > 1 and self.every_steps % 1:
            return [f"every_steps={self.every_steps} is neither a whole number nor a share below 1"]
        return []


class Logging(Section):
    """What metrics.jsonl and TensorBoard get."""

    every_steps: PositiveInt = 1


class Evaluation(Section):
    """Of data.held_out."""

    every_steps: PositiveInt | None = None
    """null: at the run's end alone."""


class Lora(Section):
    """Low-rank adapters in place of all weights (Hu et al. 2021, arXiv 2106.09685); hf/step_N holds the merged model."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get adapters, such as [q_proj, v_proj]; all-linear: all but the output head."""


class RecipeConfig(PreparationConfig):
    """What all recipes have."""

    train: Train
    optim: Optim
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()
    evaluation: Evaluation = Evaluation()
    lora: Lora | None = None
    """null: all weights are trained."""

    def problems(self) -> list[str]:
        if self.evaluation.every_steps and not self.data.held_out:
            return [
                f"evaluation.every_steps={self.evaluation.every_steps}, but data.held_out is empty; name a set or leave it out"
            ]
        return []


class SftConfig(RecipeConfig):
    """Supervised fine-tuning."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.data.kind != "tokens":
            kind = self.data.sources[0].kind
            found.append(f"data.sources: kind={kind} is not for this recipe, which trains on chat and text")
        return found


class MidConfig(SftConfig):
    """Mid-training: as SFT, on every token of a chat."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.data.loss_on != "all":
            found.append(f"data.loss_on={self.data.loss_on}: mid-training is on all tokens; set all, or use the recipe sft")
        return found


class Preference(Section):
    """The loss on pairs."""

    loss: Literal["apo_zero", "apo_down", "dpo", "kto", "orpo"] = "apo_zero"
    """apo_zero: D'Oosterlinck et al. 2024, arXiv 2408.06266, and apo_down, for a model that is better than the chosen answers;
    dpo: Rafailov et al. 2023, 2305.18290; kto: Ethayarajh et al. 2024, 2402.01306, each pair a good and a bad answer; orpo:
    Hong et al. 2024, 2403.07691, which needs no reference."""
    beta: PositiveFloat
    """How strongly the model is held where it started (SmolLM3: 0.05); of orpo: weight of the odds ratio."""


class PreferenceConfig(RecipeConfig):
    """Preference optimisation; the reference model is the one that the run starts from."""

    preference: Preference

    def problems(self) -> list[str]:
        found = super().problems()
        if self.data.kind != "preference":
            kind = self.data.sources[0].kind
            found.append(f"data.sources: kind={kind} is not for this recipe, which trains on kind: preference")
        if self.preference.loss == "kto" and self.train.micro_batch_size < 2:
            found.append(
                f"train.micro_batch_size={self.train.micro_batch_size} with preference.loss=kto: it compares answers "
                "with other pairs' prompts; set 2 or more"
            )
        return found


class GrpoConfig(RecipeConfig):
    """Reinforcement learning on prompts. A row of the batch is one sampled answer."""

    grpo: Grpo
    rewards: Rewards

    def problems(self) -> list[str]:
        found = super().problems()
        answers, batch = self.grpo.answers, self.train.global_batch_size
        if self.data.kind != "prompts":
            kind = self.data.sources[0].kind
            found.append(f"data.sources: kind={kind} is not for this recipe, which samples answers to kind: prompts")
        if batch % answers:
            found.append(f"train.global_batch_size={batch} answers are not whole groups of grpo.answers={answers}; change one")
        if not self.rewards.weights:
            found.append("rewards: none is chosen; write format, accuracy or length")
        for mode in ("no_think", "think"):
            interval = getattr(self.rewards.length, mode, None)
            if interval and interval[1] > self.grpo.max_answer:
                found.append(
                    f"rewards.length.{mode}={list(interval)} ends beyond grpo.max_answer={self.grpo.max_answer}, where answers "
                    "are cut; let it end there or before"
                )
        return [*found, *self._accuracy_problems()]

    def _accuracy_problems(self) -> list[str]:
        accuracy, sources = self.rewards.accuracy, [*self.data.sources, *self.data.held_out]
        if accuracy is None or self.data.kind != "prompts":
            return []
        found = []
        without = [source.name for source in sources if accuracy.column not in source.keep]
        names = [source.name for source in sources if source.name not in without]
        if not names or (without and len(self.rewards.weights) == 1):
            found.append(
                f"rewards.accuracy: source {without[0]} keeps no column {accuracy.column!r}, so that nothing judges its "
                f"answers; write keep: [{accuracy.column}] there, or choose another reward too"
            )
        found += [
            f"rewards.accuracy.exact: {name!r} is no source that keeps {accuracy.column!r}; {nearest(name, names)}"
            for name in accuracy.exact
            if name not in names
        ]
        return found


RECIPES: dict[str, type[RecipeConfig]] = {
    "mid": MidConfig,
    "sft": SftConfig,
    "preference": PreferenceConfig,
    "grpo": GrpoConfig,
}
