"""`chat HF_DIR`: talk to a model in the terminal. What scores do not tell, such as a system prompt that never arrives, a
conversation does. Lines that are piped in are turns too: answers go to stdout, all else to stderr.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.talk import Message, Model, message_of
from smol_answers import END_THINK, THINK, Answer
from smol_config import UserError, nearest
from smol_console import add_command, whole_number

COMMANDS = {
    "/think": "reason before answering",
    "/no_think": "answer at once",
    "/system": "TEXT: another system message; without one: none",
    "/reset": "forget the conversation",
    "/quit": "end",
}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def chat(options: argparse.Namespace) -> int:
    """The command; raises UserError for a folder that is no chat model, and for tools that are none."""
    import torch

    tools = _tools(options.tools) if options.tools else []
    model = Model(options.hf_dir)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    settings = model.settings(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        max_new_tokens=options.max_new_tokens,
    )
    talk = Conversation(model, settings, tools)
    talk.instruct(options.system or "")
    _tell(f"{options.hf_dir}; {', '.join(f'{name} {what}' for name, what in COMMANDS.items())}")
    for line in _lines():
        if line == "/quit":
            break
        talk.take(line)
    return 0


class Conversation:
    """What was said, and how the model is to answer."""

    def __init__(self, model: Model, settings: Any, tools: Sequence[dict[str, Any]]) -> None:
        self.model, self.settings, self.tools = model, settings, tools
        self.system, self.think = "", True
        self.turns: list[Message] = []
        self.open_calls: list[dict[str, Any]] = []
        """Calls of the last answer whose results are still to be typed."""

    def take(self, line: str) -> None:
        """A line of the user: a command, the result of a call, or a message, which is answered."""
        word, _, rest = line.partition(" ")
        if word.startswith("/") and "/" not in word[1:]:
            self._command(word, rest.strip())
        elif self.open_calls:
            call = self.open_calls.pop(0)
            self.turns.append({"role": "tool", "name": call["name"], "content": line})
            self._ask_or_answer(call)
        elif line:
            self.turns.append({"role": "user", "content": line})
            self._ask_or_answer()

    def instruct(self, text: str) -> None:
        """Set the system message. A mode in it is taken out and switched to: in it, templates would let it win for ever."""
        words = text.split()
        if {"/think", "/no_think"} & set(words):
            self.think = "/no_think" not in words
        self.system = text.replace("/no_think", "").replace("/think", "").strip()

    def _command(self, word: str, rest: str) -> None:
        match word:
            case "/think" | "/no_think":
                self.think = word == "/think"
                _tell(COMMANDS[word])
            case "/system":
                self.instruct(rest)
                _tell(f"system message: {self.system or 'none'}")
            case "/reset":
                self.turns, self.open_calls = [], []
                _tell("the conversation begins anew")
            case _:
                _tell(f"{word} is no command; {nearest(word, list(COMMANDS))}")

    def _ask_or_answer(self, returned: dict[str, Any] | None = None) -> None:
        """Ask for the result of the next call, or have the model answer. `returned` is the call whose result was just typed: it
        is open again if no answer comes."""
        if not self.open_calls:
            system = [{"role": "system", "content": self.system}] if self.system else []
            prompt = self.model.prompt([*system, *self.turns], self.think, self.tools)
            try:
                answer = self.model.answer(prompt, self.settings, _show)
            except (UserError, KeyboardInterrupt) as error:
                _tell(f"{error} with /reset" if isinstance(error, UserError) else "interrupted; your last line is forgotten")
                self.turns.pop()
                self.open_calls = [returned] if returned else []
                return
            print(_PLAIN if _on_terminal() else "", flush=True)
            self._keep(answer)
        if self.open_calls:
            call = self.open_calls[0]
            _tell(f"type the result of {call['name']}({json.dumps(call['arguments'], ensure_ascii=False)}):")

    def _keep(self, answer: Answer) -> None:
        self.turns.append(message_of(answer))
        self.open_calls = list(answer.tool_calls)
        if not answer.closed:
            _tell(f"the reasoning did not end within {self.settings.max_new_tokens:,} tokens; --max-new-tokens allows more")
        if answer.broken_calls:
            _tell(f"{answer.broken_calls} tool calls are not JSON with a name")


def _lines() -> Iterator[str]:
    """What the user types, with the arrow keys' history on a terminal; else the lines of stdin."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401  # input() edits lines and knows former ones once it is loaded

    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return


def _show(text: str) -> None:
    """A piece of the answer; reasoning is dim on a terminal."""
    if _on_terminal():
        text = text.replace(THINK, _DIM + THINK).replace(END_THINK, END_THINK + _PLAIN)
    print(text, end="", flush=True)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _tell(text: str) -> None:
    print(f"[{text}]", file=sys.stderr, flush=True)


def _tools(path: Path) -> list[dict[str, Any]]:
    """Functions, each {"name": ..., "parameters": ...} or that as "function" of an object, as OpenAI's API has them."""
    try:
        tools = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--tools {path} cannot be read ({error}); give a JSON list of functions") from error
    named = isinstance(tools, list) and all(isinstance(t, dict) and "name" in t.get("function", t) for t in tools)
    if not named or not tools:
        raise UserError(f'--tools {path} is no list of functions; write [{{"name": "NAME", "parameters": {{...}}}}]')
    return list(tools)


def _number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type."""

    def number(text: str) -> float:
        if not low <= (value := float(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not within {low:g} and {high:g}")
        return value

    return number


def add_parser(commands: Any) -> None:
    """The parser of `chat`."""
    command = add_command(
        commands,
        "chat",
        "Talk to a model in the terminal; its generation_config.json says how it answers, unless options do.",
        'python -m evaluation chat runs/chat/sft/hf/step_1000 --system "Answer as a pirate would." --temperature 0.6',
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="a chat model's Hugging Face folder")
    command.add_argument("--system", metavar="TEXT", help="system message")
    command.add_argument("--tools", metavar="FILE", type=Path, help="JSON list of functions; you type what calls return")
    command.add_argument("--temperature", metavar="T", type=_number(0, 100), help="0: the likeliest token each time")
    command.add_argument("--top-p", metavar="P", type=_number(0.001, 1), help="sample from the likeliest that make up P")
    command.add_argument("--top-k", metavar="K", type=whole_number(0), help="sample from the K likeliest; 0: from all")
    command.add_argument(
        "--repetition-penalty", metavar="R", type=_number(0.001, 100), help="above 1: what was said is less likely"
    )
    command.add_argument("--max-new-tokens", metavar="N", type=whole_number(1), help="of an answer, reasoning included")
    command.add_argument("--seed", metavar="N", type=whole_number(0), help="of sampling; without it every talk differs")
    command.set_defaults(run=chat)
