"""The `optim:` section: optimizer and learning-rate schedule."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from smol_config import Section


class ScheduleConfig(Section):
    """Learning rate by step: linear warm-up from 0 to the peak, then `kind`."""

    kind: Literal["wsd", "cosine", "multi_step", "constant"] = "wsd"
    warmup_steps: NonNegativeInt = 0
    decay_steps: NonNegativeInt = 0
    """wsd only: the last steps of the run, over which the rate falls from its peak to the minimum."""
    decay_shape: Literal["linear", "cosine", "1-sqrt", "exponential"] = "linear"
    """wsd only."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Where wsd and cosine end."""
    milestones: list[PositiveInt] = Field(default_factory=list)
    """multi_step only: the rate is multiplied by `factor` after each of these steps."""
    factor: PositiveFloat = 0.316
    """multi_step only (0.316: DeepSeek LLM's sqrt(0.1))."""
    batch_rule: Literal["none", "sqrt", "linear"] = "none"
    """What train.batch_ramp does to the rate while the batch is B of finally F windows: nothing, times sqrt(B / F) (for
    adaptive optimizers, Malladi et al. 2022) or times B / F (for SGD, Goyal et al. 2017)."""

    def problems(self) -> list[str]:
        found = []
        if self.kind != "wsd" and self.decay_steps:
            found.append(f"decay_steps={self.decay_steps} only means something with kind: wsd, not {self.kind}; take it out")
        if (self.kind == "multi_step") != bool(self.milestones):
            found.append(
                f"milestones={self.milestones} with kind: {self.kind}; multi_step needs them and only multi_step takes them"
            )
        if self.milestones != sorted(set(self.milestones)):
            found.append(f"milestones={self.milestones} must rise from one to the next")
        if self.kind == "wsd" and self.decay_shape == "exponential" and self.decay_steps and not self.min_learning_rate:
            found.append("min_learning_rate=0 with decay_shape: exponential never arrives; set it above 0")
        return found


class MuonConfig(Section):
    """Muon: orthogonal updates for the matrices of the layers. Everything else is updated by AdamW, with the betas and eps of
    `optim`; learning rate and weight decay are shared."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations, computed in train.precision."""
    update_rms: PositiveFloat = 0.2
    """Root mean square of an update at a learning rate of 1: what AdamW's is about, so that its rate fits (Liu et al. 2025)."""
    parameters: list[str] = Field(
        default_factory=lambda: ["*linear_qkv.weight", "*linear_proj.weight", "*linear_fc1.weight", "*linear_fc2.weight"]
    )
    """Shell-style patterns of parameter names; each must match something, and only matrices. Embedding and head are left to
    AdamW (Jordan et al. 2024)."""


class AdEMAMixConfig(Section):
    """AdEMAMix: AdamW with the betas and eps of `optim`, and a second, slow average of the gradients."""

    beta3: float = Field(default=0.9999, gt=0, lt=1)
    """Of the slow average (Pagliardini et al. 2024: 0.9999)."""
    alpha: NonNegativeFloat = 8.0
    """Weight of the slow average beside the fast one (4 to 10, there)."""
    beta3_warmup_steps: NonNegativeInt | None = None
    """Steps in which the slow average becomes slow, from the first of `betas`; null: the whole run. Give a number for a run
    that may be lengthened."""
    alpha_warmup_steps: NonNegativeInt | None = None
    """Steps in which alpha rises from 0; null: the whole run."""


class OptimConfig(Section):
    """Optimizer and schedule."""

    optimizer: Literal["adamw", "muon", "ademamix"] = "adamw"
    """adamw shares its states out over the data-parallel ranks; the others keep them whole on each."""
    muon: MuonConfig = MuonConfig()
    ademamix: AdEMAMixConfig = AdEMAMixConfig()
    learning_rate: PositiveFloat
    """Peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    no_weight_decay: list[str] = Field(default_factory=lambda: ["*word_embeddings.weight"])
    """Shell-style patterns of parameter names left out of weight decay; each must match something. The default is
    SmolLM3's: the embedding (with the head tied to it) is left out, norms are decayed."""
    clip_grad_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def distributed(self) -> bool:
        """Whether the data-parallel ranks share the optimizer's states."""
        return self.optimizer == "adamw"

    def problems(self) -> list[str]:
        found = []
        for name, changed in {"muon": self.muon != MuonConfig(), "ademamix": self.ademamix != AdEMAMixConfig()}.items():
            if changed and self.optimizer != name:
                found.append(
                    f"{name} is set, but optimizer={self.optimizer} does not read it; set optimizer: {name} or take it out"
                )
        slow = self.ademamix.beta3
        if self.optimizer == "ademamix" and self.betas[0] > slow:
            found.append(f"ademamix.beta3={slow} is below betas[0]={self.betas[0]}; the slow average needs the larger one")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas={list(self.betas)} must be at least 0 and below 1")
        if self.schedule.min_learning_rate > self.learning_rate:
            found.append(
                f"schedule.min_learning_rate={self.schedule.min_learning_rate} is above learning_rate={self.learning_rate}"
            )
        return found
