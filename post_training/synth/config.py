"""The configuration of `synth`: prompts in, rows out, and the models that answer.

kind: pairs          a strong model's answer is chosen, a weak one's rejected       model, weak
kind: graded         of several answers of one model the best and the worst         model, graded
kind: instructions   conversations whose instructions code can verify               model, instructions
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from post_training.config import Source
from post_training.rewards import Rewards
from smol_config import Section


class Price(Section):
    """US dollars for a million tokens."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class Endpoint(Section):
    """A model behind a server that speaks OpenAI's chat completions, as vLLM, SGLang, llama.cpp and hosted models do."""

    url: str = Field(pattern=r"^https?://")
    """Without /chat/completions: http://node:8000/v1."""
    model: str
    """Its name there."""
    key: str | None = None
    """Name of the environment variable that holds the API key; null: none is sent."""
    temperature: NonNegativeFloat = 0.6
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: PositiveInt = 8192
    """Of an answer with its reasoning; one that is cut there is not used."""
    mode_by: Literal["template", "system", "none"] = "template"
    """How the server learns whether to reason. template: chat_template_kwargs.enable_thinking, as Qwen3 and this project's
    models have it; system: /think or /no_think in the system message; none: not at all."""
    price: Price | None = None


class Graded(Section):
    """Several answers of one model, graded by the rewards that GRPO has."""

    answers: int = Field(default=8, ge=2)
    """Sampled for each prompt."""
    rewards: Rewards
    least_gap: PositiveFloat = 0.5
    """Between the best and the worst answer's weighted sums; prompts with less are left out."""


class Instructions(Section):
    """Conversations in which each turn of the user adds instructions that code can verify."""

    turns: PositiveInt = 2
    """Of the user."""
    added: int = Field(default=1, ge=1, le=3)
    """Instructions that each turn adds; earlier ones hold on."""
    tries: PositiveInt = 4
    """Answers to a turn until one follows them all; then the conversation is left out."""

    def problems(self) -> list[str]:
        if self.turns * self.added > 6:
            return [f"turns={self.turns} x added={self.added} are more than 6 instructions at once; lower one"]
        return []


class SynthConfig(Section):
    """One run of `synth`."""

    kind: Literal["pairs", "graded", "instructions"]
    prompts: Source
    """kind: prompts; `mode` says whether answers reason."""
    output_dir: str
    """Gets rows.jsonl, left_out.jsonl, run.yaml and report.json."""
    model: Endpoint
    weak: Endpoint | None = None
    """pairs: whose answers are rejected."""
    graded: Graded | None = None
    instructions: Instructions = Instructions()
    seed: NonNegativeInt = 0
    """Each request has its own, which follows from this one, the prompt and the request's number."""
    concurrent: PositiveInt = 16
    """Prompts worked on at the same time."""
    attempts: PositiveInt = 6
    """Of a request that fails in a way that may pass; waits grow from 1 second, doubling, to a minute."""
    timeout_seconds: PositiveFloat = 600.0
    """Of one attempt."""

    def problems(self) -> list[str]:
        found = []
        if self.prompts.kind != "prompts":
            found.append(f"prompts.kind={self.prompts.kind}: answers are made to prompts; set kind: prompts")
        if (self.kind == "pairs") != (self.weak is not None):
            found.append(f"kind={self.kind} and weak={'set' if self.weak else None}: pairs need a weak model, and only pairs")
        if (self.kind == "graded") != (self.graded is not None):
            found.append(f"kind={self.kind} and graded={'set' if self.graded else None}: graded needs it, and nothing else")
        rewards = self.graded.rewards if self.graded else None
        if rewards and not rewards.weights:
            found.append("graded.rewards: none is chosen; write format, accuracy or length")
        if rewards and rewards.accuracy and rewards.accuracy.column not in self.prompts.keep:
            column = rewards.accuracy.column
            found.append(f"graded.rewards.accuracy: prompts keep no column {column!r}; write keep: [{column}]")
        return found
