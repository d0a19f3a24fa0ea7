"""Records of any dataset -> samples of one form, and what is wrong with those that cannot be used. After sources.py.

Messages may be TRL's (role, content) or ShareGPT's (from, value); reasoning may stand in reasoning_content or inside
<think> tags of the content. Here there is one form: role, content, reasoning_content, tool_calls, nothing else, no Nones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal, NoReturn

from post_training.config import ROLES_OF_COLUMNS, Source
from smol_answers import parse
from smol_config import UserError, nearest

Message = dict[str, Any]
SampleMode = Literal["think", "no_think", "text"]

TEMPLATE_OPTIONS = ("enable_thinking", "custom_instructions", "xml_tools", "python_tools")
"""What a row's chat_template_kwargs may hold; smoltalk2's do."""
_SHARE_GPT = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
_REQUIRED = {"text": ("text",), "chat": ("messages",), "preference": ("chosen", "rejected"), "prompts": ("prompt",)}
_OPTIONAL = ("tools", "chat_template_kwargs")
"""Without these a row is whole, and means something else."""
_NEAR = 0.7
"""How alike such a column's name and an unread one's are to be warned of: tool and tools, but not tool_calls."""


class BrokenRow(Exception):
    """A row that cannot be used: `kind` groups such rows in the report, the text says what is wrong with this one."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass
class Sample:
    """A row in the one form. What its kind does not have is empty."""

    mode: SampleMode
    messages: list[Message] = field(default_factory=list)
    """chat: all turns. preference, prompts: the prompt."""
    options: dict[str, Any] = field(default_factory=dict)
    """Variables of the template."""
    chosen: Message | None = None
    rejected: Message | None = None
    text: str = ""
    kept: dict[str, str] = field(default_factory=dict)


class Normaliser:
    """Rows of one source -> samples; raises UserError once for columns that are not there, BrokenRow for a row."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._column = {name: source.columns.get(name, name) for name in ROLES_OF_COLUMNS[source.kind]}
        self._checked = False

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        if not self._checked:
            self._check_columns(record)
            self._checked = True
        kind = self._source.kind
        if kind == "text":
            text = self._value(record, "text")
            if not isinstance(text, str) or not text.strip():
                raise BrokenRow("empty text", f"{self._column['text']} holds no text")
            return Sample("text", text=text)
        options = self._options(record)
        if kind == "chat":
            messages = self._messages(record, "messages") or [
                *self._messages(record, "prompt"),
                *self._messages(record, "completion", "assistant"),
            ]
            check_roles(messages)
            if not any(message["role"] == "assistant" for message in messages):
                raise BrokenRow("no assistant turn", "there is no assistant turn to learn from")
            return Sample(self._mode(messages, messages, options), messages, options)
        prompt = self._messages(record, "prompt")
        if kind == "prompts":
            check_roles(prompt)
            return self._prompt(record, prompt, options)
        return self._pair(record, prompt, options)

    # --- kinds ---------------------------------------------------------------------------------------------------------

    def _pair(self, record: Mapping[str, Any], prompt: list[Message], options: dict[str, Any]) -> Sample:
        chosen, rejected = (self._messages(record, name, "assistant") for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise BrokenRow("chosen equals rejected", "chosen and rejected are the same")
        alike = 0
        while alike < min(len(chosen), len(rejected)) - 1 and chosen[alike] == rejected[alike]:
            alike += 1
        # Where both are whole conversations, what they begin with is the prompt.
        prompt, chosen, rejected = chosen[:alike] or prompt, chosen[alike:], rejected[alike:]
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            if [message["role"] for message in answer] != ["assistant"]:
                raise BrokenRow("no single answer", f"{name} is not one assistant turn after the prompt")
            check_roles([*prompt, *answer])
        return Sample(self._mode(prompt, [*chosen, *rejected], options), prompt, options, chosen[0], rejected[0])

    def _prompt(self, record: Mapping[str, Any], prompt: list[Message], options: dict[str, Any]) -> Sample:
        """The mode, and instructions, go into the system message: TRL's GRPO gives all prompts the same template variables."""
        if options.get("xml_tools") or options.get("python_tools"):
            raise BrokenRow("tools in a prompt", "prompts for reinforcement learning cannot have tools of their own")
        if prompt[-1]["role"] == "assistant":
            raise BrokenRow("roles out of order", "the prompt ends with an assistant turn")
        mode = self._mode(prompt, [], options)
        system, turns = split_system(prompt)
        words = [system.replace("/no_think", "").replace("/think", "").strip() if flag(system) else system]
        words += [str(options.get("custom_instructions") or ""), "/think" if mode == "think" else "/no_think"]
        content = "\n".join(word for word in words if word)
        for name in self._source.keep:
            if record.get(name) is None:
                raise BrokenRow("no kept value", f"{name}, which keep names, has no value")
        kept = {name: _as_text(record[name]) for name in self._source.keep}
        return Sample(mode, [{"role": "system", "content": content}, *turns], {}, kept=kept)

    # --- columns -------------------------------------------------------------------------------------------------------

    def _check_columns(self, record: Mapping[str, Any]) -> None:
        needed = [self._column[name] for name in _REQUIRED[self._source.kind]]
        if self._source.kind == "chat" and self._column["messages"] not in record:
            pair = [self._column["prompt"], self._column["completion"]]
            needed = pair if set(pair) <= set(record) else needed
        for name in [*needed, *self._source.columns.values(), *self._source.keep]:
            if name not in record:
                raise UserError(
                    f"dataset {self._source.name} has no column {name!r}; {nearest(name, record)}; say in columns: what it is "
                    f"called there"
                )

    def nearly_read(self, record: Mapping[str, Any]) -> list[str]:
        """Of a row's columns, those whose name is nearly that of one that rows may lack: without a word it would be lost."""
        names = tuple((name, self._column[name]) for name in _OPTIONAL if name in self._column)
        return _nearly_read(tuple(record), names, (*self._column.values(), *self._source.keep))

    def _value(self, record: Mapping[str, Any], name: str) -> Any:
        return record.get(self._column[name])

    def _messages(self, record: Mapping[str, Any], name: str, role: str = "user") -> list[Message]:
        """The messages of a column; plain text is one message of `role`."""
        value = self._value(record, name)
        if isinstance(value, str):
            return [_message({"role": role, "content": value})] if value else []
        if value is not None and not isinstance(value, list):
            raise BrokenRow("malformed message", f"{self._column[name]} holds {type(value).__name__}, not messages")
        return [_message(item) for item in value or []]

    def _options(self, record: Mapping[str, Any]) -> dict[str, Any]:
        given = self._value(record, "chat_template_kwargs")
        given = _from_json(given) or {}
        if unknown := [name for name in given if name not in TEMPLATE_OPTIONS]:
            raise BrokenRow(
                "unknown template option", f"chat_template_kwargs: {unknown[0]!r}; {nearest(unknown[0], TEMPLATE_OPTIONS)}"
            )
        options = {name: value for name, value in given.items() if value is not None and value != []}
        tools = self._value(record, "tools") if "tools" in self._column else None
        return options | {"xml_tools": _from_json(tools)} if tools else options

    def _mode(self, messages: list[Message], answers: list[Message], options: dict[str, Any]) -> Literal["think", "no_think"]:
        reasons = any("reasoning_content" in message for message in answers)
        mode: Literal["think", "no_think"]
        if self._source.mode != "data":
            mode = self._source.mode
        elif (found := flag(split_system(messages)[0])) is not None:
            mode = found
        elif "enable_thinking" in options:
            mode = "think" if options["enable_thinking"] else "no_think"
        else:
            mode = "think" if reasons or self._source.kind == "prompts" else "no_think"
        if mode == "no_think" and reasons:
            raise BrokenRow("reasoning in no_think", "an answer holds reasoning and the mode is no_think")
        written = flag(split_system(messages)[0])
        if written is not None and written != mode and self._source.kind != "prompts":
            raise BrokenRow("mode against its flag", f"the system message says /{written} and mode is {mode}")
        options["enable_thinking"] = mode == "think"
        return mode


def split_system(messages: list[Message]) -> tuple[str, list[Message]]:
    """The system message's text, empty without one, and the turns after it."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def flag(system: str) -> Literal["think", "no_think"] | None:
    """The mode that a system message asks for, as the template reads it."""
    words = system.split()
    return "no_think" if "/no_think" in words else "think" if "/think" in words else None


def check_roles(messages: list[Message]) -> None:
    """Raise BrokenRow unless turns follow each other: system first, then user and assistant by turns, tools after calls."""
    before = "start"
    follows = {
        "start": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user", "tool"),
        "tool": ("tool", "assistant"),
    }
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in follows[before]:
            raise BrokenRow(
                "roles out of order", f"turn {number} is {role} after {before}; expected {' or '.join(follows[before])}"
            )
        before = role
    if not messages or before == "system":
        raise BrokenRow("no turns", "there is no turn of a user")


@lru_cache  # rows have the same columns, or few different ones
def _nearly_read(given: tuple[str, ...], names: tuple[tuple[str, str], ...], read: tuple[str, ...]) -> list[str]:
    """`names`: what columns are called here, and there."""
    unread, found = [column for column in given if column not in read], []
    for name, column in names:
        if column not in given and (near := get_close_matches(column, unread, n=1, cutoff=_NEAR)):
            remedy = f"if it is that, write columns: {{{name}: {near[0]}}}"
            found.append(f"{near[0]!r} is not read, and there is no {column!r}; {remedy}")
    return found


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        _malformed(f"a message is {type(item).__name__}, not an object with role and content")
    role = item.get("role") or _SHARE_GPT.get(str(item.get("from")), item.get("from"))
    if role not in ("system", "user", "assistant", "tool"):
        _malformed(f"role {role!r} is none of system, user, assistant, tool")
    content = item.get("content") if "content" in item else item.get("value")
    if isinstance(content, list):
        if other := [part for part in content if not isinstance(part, Mapping) or not isinstance(part.get("text"), str)]:
            _malformed(f"a part of a message is not text: {str(other[0])[:60]}")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        _malformed(f"the content of a message is {type(content).__name__}, not text")
    message: Message = {"role": role, "content": content or ""}
    if role == "assistant":
        answer = parse(message["content"])
        reasoning = item.get("reasoning_content") or item.get("reasoning") or item.get("thinking") or answer.reasoning
        if reasoning and str(reasoning).strip():
            message["reasoning_content"] = str(reasoning).strip()
        if answer.reasoning is not None and answer.closed:
            message["content"] = answer.after_reasoning
        if calls := item.get("tool_calls"):
            message["tool_calls"] = _without_nulls(calls)
    if role == "user" and not message["content"].strip():
        raise BrokenRow("empty turn", "a user's turn is empty")
    return message


def _malformed(text: str) -> NoReturn:
    raise BrokenRow("malformed message", text)


def _from_json(value: Any) -> Any:
    """Datasets whose rows differ in shape keep such columns as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except ValueError as error:
        raise BrokenRow("malformed JSON", f"{value[:40]!r} is not valid JSON ({error})") from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every call the arguments of all calls, those of the others as nulls."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
