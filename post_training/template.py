"""Chats to text, token ids and loss mask: the one place that knows what templates do. Answers are read by smol_answers.

    templates/hybrid.jinja    this project's: /think and /no_think, instructions, tools (docs/chat_template.md)
    templates/chatml.jinja    plain ChatML, for mid-training

The text between a template's {% generation %} markers is what the loss sees. Rendering is transformers' own, so training sees
what inference servers render; token ids and masks are those of its apply_chat_template (a test compares them).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smol_config import UserError, nearest

TEMPLATES = Path(__file__).parent / "templates"
REASONING_PARSER, TOOL_PARSER = "qwen3", "hermes"
"""What vLLM and SGLang call the parsers that read this template's answers; for model cards."""


# --- templates ---------------------------------------------------------------------------------------------------------------


def load_tokenizer(model: str, template: str) -> Any:
    """The tokenizer of a Hugging Face folder with the chat template that `template` names, which is saved with it.

    `template`: hybrid, chatml, model (the folder's own) or the path of a Jinja file. Raises UserError when either is missing.
    """
    from transformers import AutoTokenizer

    check_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except Exception as error:  # depends on which file is missing or damaged
        raise UserError(
            f"model={model}: its tokenizer does not load ({str(error).splitlines()[0]}); mend the folder"
        ) from error
    if template != "model":
        tokenizer.chat_template = read_template(template)
    elif not tokenizer.chat_template:
        raise UserError(f"data.template=model: the tokenizer of {model} has no chat template; set hybrid, chatml or a path")
    return tokenizer


def check_folder(model: str) -> None:
    """Raise UserError where `model` is no folder."""
    if not Path(model).is_dir():
        raise UserError(f"model={model} is not a folder; give a Hugging Face folder, as `python -m conversion to-hf` makes it")


def read_template(template: str) -> str:
    """The text of a template, by its name here or the path of a file."""
    names = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    path = TEMPLATES / f"{template}.jinja" if template in names else Path(template)
    if not path.is_file():
        raise UserError(
            f"data.template={template} is neither a file nor a template here; {nearest(template, [*names, 'model'])}"
        )
    return path.read_text(encoding="utf8")


# --- rendering ---------------------------------------------------------------------------------------------------------------


class Rendered(NamedTuple):
    """A chat as text."""

    text: str
    spans: list[tuple[int, int]]
    """Characters [begin, end) that the markers enclose, one for each assistant turn."""


class Renderer:
    """Renders chats with a tokenizer's template; made once, used for every row."""

    def __init__(self, tokenizer: Any, today: str | None = None) -> None:
        """`today`: the date that the template shows; None: this day."""
        self.tokenizer = tokenizer
        self._variables = {**tokenizer.special_tokens_map, **({"today_date": today} if today else {})}

    def __call__(self, messages: Sequence[Mapping[str, Any]], prompt: bool = False, **options: Any) -> Rendered:
        """The text; with `prompt`, ended by what the model is asked to go on from.

        `options` are the template's variables. Raises jinja2.TemplateError where the template refuses the messages.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self.tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **{**self._variables, **options},
        )
        texts, spans = rendered
        return Rendered(texts[0], spans[0])

    def encode(self, rendered: Sequence[Rendered]) -> list["Encoded"]:
        """Token ids and token spans of many chats at once; the tokenizer uses its threads."""
        if not rendered:
            return []
        batch = self.tokenizer([chat.text for chat in rendered], add_special_tokens=False, return_attention_mask=False)
        return [
            Encoded(ids, _token_spans(encoding, chat.spans, len(ids)))
            for chat, ids, encoding in zip(rendered, batch["input_ids"], batch.encodings, strict=True)
        ]


class Encoded(NamedTuple):
    """A chat as token ids."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """Tokens [begin, end) that the loss sees."""


def _token_spans(encoding: Any, spans: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Where the characters' spans lie among the tokens, as transformers' own mask has it."""
    found = []
    for begin, end in spans:
        if begin < end:
            last = encoding.char_to_token(end - 1)
            found.append((encoding.char_to_token(begin), length if last is None else last + 1))
    return found
