"""What preparation needs to know: model, sources and their mixture, template, lengths. A recipe's config adds its own.

class SftConfig(PreparationConfig): train: TrainSection = ...      # how a recipe composes it
"""

from typing import Literal

from pydantic import Field

from smol_config import Section

Kind = Literal["text", "chat", "preference", "prompts"]
Mode = Literal["think", "no_think", "data"]

ROLES_OF_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "chat": ("messages", "prompt", "completion", "tools", "chat_template_kwargs"),
    "preference": ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs"),
    "prompts": ("prompt", "chat_template_kwargs"),
}
"""What the columns of each kind of sample are called here; `columns:` says what a dataset calls them."""


class Source(Section):
    """One dataset of the mixture."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Its name in messages, statistics and the manifest."""
    path: str
    """A file, or a folder searched to the bottom, of JSONL (also .gz, .zst) or Parquet; else namespace/name on the Hub."""
    files: list[str] = Field(default_factory=list)
    """Patterns such as SFT/s1k*.parquet; of a folder or Hub dataset only the matching files are read. Empty: all."""
    revision: str = "main"
    """Branch, tag or commit of a Hub dataset."""
    kind: Kind = "chat"
    """text: documents of a column `text`. chat: `messages`, or `prompt` and `completion`. preference: `prompt`, `chosen` and
    `rejected`. prompts: `prompt`, for reinforcement learning."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where a dataset calls a column otherwise: {messages: conversations}."""
    keep: list[str] = Field(default_factory=list)
    """prompts: columns handed to the reward functions, such as [answer]; what is no text comes as JSON."""
    mode: Mode = "data"
    """think, no_think, or data: as the row says (enable_thinking in chat_template_kwargs, a flag in its system message), else
    think where an answer holds reasoning."""
    share: float | None = Field(default=None, gt=0, le=1000)
    """Share of the rows to take: 0.5 is every other row by a seeded choice, 2 is each row twice. Default 1."""
    tokens: int | None = Field(default=None, gt=0)
    """In place of `share`: tokens to take, whole samples, each as often as it needs."""
    max_broken: int = Field(default=0, ge=0)
    """Rows that may be left out because they cannot be used; one more, and preparation is refused."""

    def problems(self) -> list[str]:
        known = ROLES_OF_COLUMNS[self.kind]
        found = [
            f"columns: {name!r} is no column of a {self.kind} source; known: {', '.join(known)}"
            for name in self.columns
            if name not in known
        ]
        if self.share is not None and self.tokens is not None:
            found.append(f"share={self.share:g} and tokens={self.tokens} are both set; keep one")
        if self.keep and self.kind != "prompts":
            found.append(f"keep={self.keep} is for kind=prompts, and kind is {self.kind}; leave it out")
        if taken := [name for name in self.keep if name in ("prompt", "mode", "dataset")]:
            found.append(f"keep: {taken[0]!r} is a column that preparation writes; rename it in the dataset")
        if self.tokens is not None and self.kind == "prompts":
            found.append("tokens is set, but prompts have no tokens to train on; use share")
        return found


class Data(Section):
    """The mixture, and how its samples become token ids."""

    sources: list[Source] = Field(min_length=1)
    held_out: list[Source] = Field(default_factory=list)
    """Evaluated, never trained on: a prompt that training has too is refused."""
    template: str = "hybrid"
    """hybrid, chatml, model (the tokenizer's own), or the path of a Jinja file with generation markers."""
    today: str = "01 July 2025"
    """The date that samples are given, so that preparing them twice gives the same bytes; models in use get the day's."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens of chats are trained: those of the assistant's turns, or all. Documents are trained whole."""
    max_length: int = Field(ge=16)
    """Longest sample in tokens: a chat, or a prompt with its longer answer. Longer ones are left out and counted; documents are
    cut into pieces, of which none is lost."""
    packing: bool = True
    """text and chat: several samples in a row of max_length, each with positions of its own."""
    seed: int = 0
    """Of the choice of rows and of their order."""
    workers: int = Field(default=1, ge=1)
    """Processes that tokenise; the result does not depend on their number."""

    @property
    def kind(self) -> Literal["tokens", "preference", "prompts"]:
        """What preparation yields, for the trainers: see prepare.py."""
        kind = self.sources[0].kind
        return kind if kind in ("preference", "prompts") else "tokens"

    def problems(self) -> list[str]:
        found = []
        for label, sources in (("sources", self.sources), ("held_out", self.held_out)):
            names = [source.name for source in sources]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                found.append(f"{label}: the name {twice[0]!r} stands twice; give each source its own")
        kinds = sorted({source.kind for source in [*self.sources, *self.held_out]})
        if len(kinds) > 1 and kinds != ["chat", "text"]:
            found.append(f"sources: the kinds {', '.join(kinds)} cannot be trained together; only chat and text can")
        return found


class PreparationConfig(Section):
    """What `preview` reads of any recipe's configuration."""

    model: str
    """A Hugging Face folder whose tokenizer knows chats (`python -m post_training chat-model` makes one)."""
    data: Data
