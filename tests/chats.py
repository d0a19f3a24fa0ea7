"""Small chats, files of them, and configurations, for the tests of post-training."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from post_training.config import PreparationConfig
from smol_config import parse

ASK = {"role": "user", "content": "Which tide comes next?"}
TELL = {"role": "assistant", "content": "The ebb."}
THINK = {"role": "assistant", "content": "The ebb.", "reasoning_content": "It is high water now."}
SYSTEM = {"role": "system", "content": "Answer as a pilot would."}
TOOL = {
    "type": "function",
    "function": {"name": "tide", "description": "Height of the tide", "parameters": {"type": "object", "properties": {}}},
}
CALL = {
    "role": "assistant",
    "content": "I look it up.",
    "tool_calls": [{"type": "function", "function": {"name": "tide", "arguments": {"place": "Brügge", "hours": [1, 2]}}}],
}


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A file of JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A chat row of two turns; `more` are other keys of the answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]
    return {"messages": turns}


def sums(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of two turns, no two alike, of some different lengths."""
    return [answered(f"What is {i} and {i}?", f"It is {2 * i}." + " Sure." * (i % 5)) for i in range(first, first + count)]


def config(model: Path, *sources: dict[str, Any], **data: Any) -> PreparationConfig:
    """A configuration; each source gets a name where it has none."""
    named = [{"name": f"set-{number}", **source} for number, source in enumerate(sources)]
    mapping = {"model": str(model), "data": {"max_length": 256, "sources": named, **data}}
    return parse(PreparationConfig, mapping, "test.yaml")
