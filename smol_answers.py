"""A chat model's answer taken apart: reasoning, tool calls, and what remains. The packages import this file; it imports none.

What it reads is what the chat template of post_training writes (docs/chat_template.md); rewards, made data and the evaluations
read answers by it.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Answer:
    """The parts of what a model wrote."""

    reasoning: str | None
    """None where no <think> stands; else what is between the tags, trimmed."""
    content: str
    """The answer itself: no reasoning, no tool calls, trimmed."""
    closed: bool = True
    """False where <think> has no </think>: then everything after it is reasoning."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """name and arguments of each <tool_call> that is valid JSON."""
    broken_calls: int = 0
    """Tool calls that are not."""
    code: list[str] = field(default_factory=list)
    """What stands in <code> tags: calls of Python tools."""
    after_reasoning: str = ""
    """The text after </think> as it stands, tool calls included."""


_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)


def parse(text: str) -> Answer:
    """An assistant's turn, with or without its <|im_end|>, taken apart; nothing is an error."""
    text = text.strip().removesuffix(IM_END).strip()
    reasoning, closed, rest = None, True, text
    if text.startswith(THINK):
        inside, tag, rest = text[len(THINK) :].partition(END_THINK)
        reasoning, closed, rest = inside.strip(), bool(tag), rest.strip()
    calls, broken = [], 0
    for written in _CALL.findall(rest):
        try:
            call = json.loads(written)
            calls.append({"name": call["name"], "arguments": call.get("arguments", {})})
        except (ValueError, TypeError, KeyError, AttributeError):
            broken += 1
    content = _CALL.sub("", rest).strip()
    return Answer(reasoning, content, closed, calls, broken, [code.strip() for code in _CODE.findall(rest)], rest)
