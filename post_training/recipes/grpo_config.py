"""The section `grpo:` of a run: how answers are sampled, and how the model moves. What they are worth: rewards.py."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from smol_config import Section


class Vllm(Section):
    """Answers sampled by vLLM in place of transformers; an environment of its own (requirements-grpo.txt)."""

    url: str | None = None
    """Of a vLLM server that TRL can give the weights to. null: vLLM inside the training processes, on the same GPUs."""
    memory: float = Field(default=0.3, gt=0, lt=1)
    """Without url: share of a GPU's memory."""


class Grpo(Section):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), by TRL. Each step samples its own answers, so
    that no ratio of old to new probabilities is clipped."""

    answers: int = Field(default=8, ge=2)
    """Sampled for each prompt: a group, within which rewards are compared."""
    max_answer: PositiveInt
    """Tokens, reasoning included; a longer answer is cut."""
    temperature: PositiveFloat = 1.0
    loss: Literal["dapo", "dr_grpo", "grpo"] = "dapo"
    """How tokens are averaged. dapo: over all of the step's (arXiv 2503.14476); dr_grpo: by max_answer (2503.20783); grpo:
    within each answer first, which favours short good answers and long bad ones."""
    scale: Literal["group", "batch", "none"] = "group"
    """Standard deviation that advantages are divided by."""
    beta: NonNegativeFloat = 0.0
    """Weight of the divergence from the model that the run began with; 0 needs no such model."""
    mask_truncated: bool = False
    """Leave answers out of the loss that max_answer cut."""
    warn_after: PositiveInt = 10
    """Logged steps in a row in which a reward does not tell any group's answers apart."""
    vllm: Vllm | None = None
    """null: transformers samples."""
