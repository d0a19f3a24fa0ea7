"""`vibe HF_DIR ...`: the same words to several checkpoints, their answers side by side in one HTML file.

    vibe.yaml --ask(), greedy, a folder at a time--> a column each --page()--> OUT.html, complete in itself

It scores nothing. It is for reading: system messages that are ignored, answers that never end, modes that do not switch.
"""

import argparse
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from evaluation.talk import Model, message_of
from smol_config import Section, UserError, load_mapping, parse
from smol_console import Progress, add_command

PROMPTS = Path(__file__).parent / "vibe.yaml"
TODAY = "01 January 2026"
"""The date that templates show: answers must not change with the day."""
_STYLE = """body{font:14px sans-serif;margin:1em}table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.5em;
vertical-align:top;text-align:left;min-width:18em;max-width:40em}th{background:#eee;position:sticky;top:0}p{margin:.3em 0;
white-space:pre-wrap}.user{color:#05a}.reasoning{color:#888;font-style:italic}.fault{color:#b00;font-weight:bold}
.shown{color:#080}.system{font-size:90%}"""


class VibePrompt(Section):
    """A conversation, of which the user's side is fixed."""

    name: str
    """Heads its rows."""
    system: str | None = None
    """System message."""
    modes: tuple[Literal["think", "no_think"], ...] = Field(default=("think", "no_think"), min_length=1)
    """A row each."""
    turns: tuple[str, ...] = Field(min_length=1)
    """What the user says; the model answers each."""
    must_show: str = ""
    """A regular expression that each answer has to match, in any case; empty: none."""

    @field_validator("must_show")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return pattern


class Vibe(Section):
    """The file of prompts."""

    prompts: tuple[VibePrompt, ...] = Field(min_length=1)
    max_new_tokens: PositiveInt = 256
    """Of an answer, reasoning included."""

    def rows(self) -> list[tuple[VibePrompt, str]]:
        """(prompt, mode) of each row of the page."""
        return [(prompt, mode) for prompt in self.prompts for mode in prompt.modes]


Column = Mapping[str, Any]
"""{"model": name, "asked": the Vibe, "rows": for each of its rows() a list of answers}; JSON takes it."""


def load_vibe(path: Path) -> Vibe:
    """The prompts of a file; raises ConfigError listing every fault."""
    return parse(Vibe, load_mapping(path), source=str(path))


def ask(hf_dir: Path, vibe: Vibe) -> Column:
    """What a model answers, the likeliest token each time; raises UserError as talk.Model does."""
    model = Model(hf_dir)
    settings = model.settings(temperature=0, max_new_tokens=vibe.max_new_tokens)
    rows = []
    with Progress(f"talking to {hf_dir.name}", "conversations", len(vibe.rows())) as progress:
        for prompt, mode in vibe.rows():
            rows.append(list(_talk(model, settings, prompt, mode)))
            progress.advance()
    return {"model": str(hf_dir), "asked": vibe.model_dump(mode="json"), "rows": rows}


def _talk(model: Model, settings: Any, prompt: VibePrompt, mode: str) -> Iterator[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for said in prompt.turns:
        messages.append({"role": "user", "content": said})
        text = model.prompt(messages, mode == "think", (), today_date=TODAY)
        try:
            answer = model.answer(text, settings)
        except UserError as error:  # longer than the model reads
            yield {"content": "", "reasoning": None, "faults": [str(error)]}
            return
        messages.append(message_of(answer))
        faults = [] if answer.closed else ["the reasoning does not end"]
        if prompt.system and prompt.system not in text:
            faults.append("the chat template loses the system message")
        if prompt.must_show and not re.search(prompt.must_show, answer.content, re.IGNORECASE):
            faults.append(f"does not show {prompt.must_show}")
        yield {"content": answer.after_reasoning, "reasoning": answer.reasoning, "faults": faults}


def vibe(options: argparse.Namespace) -> int:
    """The command."""
    prompts = load_vibe(options.prompts)
    if options.output.exists():
        raise UserError(f"--output {options.output} is there already; give another name, or remove it")
    columns = [ask(hf_dir, prompts) for hf_dir in options.hf_dirs]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(prompts, columns), encoding="utf8")
    print(f"wrote {options.output}")
    return 0


# --- the page --------------------------------------------------------------------------------------------------------------


def page(vibe: Vibe, columns: Sequence[Column]) -> str:
    """The HTML: a row a prompt and mode, a column a checkpoint."""
    heads = "".join(f"<th>{html.escape(column['model'])}</th>" for column in columns)
    rows = []
    for number, (prompt, mode) in enumerate(vibe.rows()):
        cells = "".join(f"<td>{_cell(prompt, column['rows'][number])}</td>" for column in columns)
        system = _paragraph("system", f"system: {prompt.system}") if prompt.system else ""
        rows.append(f"<tr><td><b>{html.escape(prompt.name)}</b><br>/{mode}{system}</td>{cells}</tr>")
    return (
        f'<!doctype html><meta charset="utf8"><title>vibe</title><style>{_STYLE}</style>\n'
        f"<table><tr><th>prompt</th>{heads}</tr>\n" + "\n".join(rows) + "</table>\n"
    )


def _cell(prompt: VibePrompt, answers: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for said, answer in zip(prompt.turns, answers, strict=False):  # fewer answers where the model's room ended
        parts.append(_paragraph("user", said))
        if answer["reasoning"]:
            parts.append(_paragraph("reasoning", answer["reasoning"]))
        parts.append(_paragraph("answer", answer["content"]))
        parts += [_paragraph("fault", f"✗ {fault}") for fault in answer["faults"]]
        if prompt.must_show and not answer["faults"]:
            parts.append(_paragraph("shown", f"✓ shows {prompt.must_show}"))
    return "".join(parts)


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def add_parser(commands: Any) -> None:
    """The parser of `vibe`."""
    command = add_command(
        commands,
        "vibe",
        "The same conversations with several checkpoints, side by side in one HTML file.",
        "python -m evaluation vibe runs/sft/hf/step_500 runs/sft/hf/step_1000 --output vibe.html",
    )
    command.add_argument("hf_dirs", metavar="HF_DIR", nargs="+", type=Path, help="chat models' Hugging Face folders")
    command.add_argument("--output", metavar="OUT.html", type=Path, required=True, help="a new file")
    command.add_argument("--prompts", metavar="FILE", type=Path, default=PROMPTS, help="default: evaluation/vibe.yaml")
    command.set_defaults(run=vibe)
