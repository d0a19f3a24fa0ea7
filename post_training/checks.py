"""What is wrong with a template, or with data: findings that refuse training or warn of it. Used by prepare.py and preview.py.

The template is tried on chats made here, with the tokenizer in hand; data is judged by what scan.py counted. What TRL does
not say, or says only in a warning, is refused: a run that learns nothing, or never learns to stop, looks healthy in its curves.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from post_training.config import Data, Source
from post_training.mixing import Mixed
from post_training.template import Renderer
from smol_answers import END_THINK, THINK
from smol_console import percent

MOST_PASSES = 4
"""Repeating data up to about 4 times is nearly as good as new data (Muennighoff et al. 2023, arXiv 2305.16264)."""
FEW_TRAINED = 0.05
"""A smaller share of trained tokens than this is warned of: most of the work goes into prompts."""


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: Literal["refuse", "warn"]
    text: str
    """What, where, and what to do."""


# --- the template ------------------------------------------------------------------------------------------------------------

_QUESTION = {"role": "user", "content": "Which tide comes next?"}
_ANSWER = {"role": "assistant", "content": "The ebb."}
_THOUGHT = {**_ANSWER, "reasoning_content": "It is high now."}
_SYSTEM = {"role": "system", "content": "Answer as a pilot would."}


def template_findings(tokenizer: Any, data: Data) -> list[Finding]:
    """What is wrong with the tokenizer's chat template, tried on small chats. Empty for sources without chats."""
    if all(source.kind == "text" for source in [*data.sources, *data.held_out]):
        return []
    return [Finding("refuse", f"data.template={data.template}: {text}") for text in _template_faults(tokenizer, data)]


def _template_faults(tokenizer: Any, data: Data) -> Iterator[str]:
    masked = data.kind != "prompts" and (data.loss_on == "assistant" or data.kind == "preference")
    if masked and "{% generation" not in tokenizer.chat_template.replace("{%-", "{%"):
        yield "it has no {% generation %} markers, so that no token would be trained; add them around the assistant's words"
        return
    render = Renderer(tokenizer, data.today)
    try:
        chats = [
            render([*turns, answer], enable_thinking=answer is _THOUGHT)
            for turns in ([_QUESTION], [_SYSTEM, _QUESTION], [_QUESTION, _ANSWER, _QUESTION])
            for answer in (_ANSWER, _THOUGHT)
        ]
        prompts = [
            render(turns, prompt=True, enable_thinking=answer is _THOUGHT)
            for turns in ([_QUESTION], [_SYSTEM, _QUESTION], [_QUESTION, _ANSWER, _QUESTION])
            for answer in (_ANSWER, _THOUGHT)
        ]
        told = render([_SYSTEM, _QUESTION], custom_instructions=None)
    except Exception as error:  # whatever the template's own code raises
        yield f"it does not render a plain chat ({error}); mend it"
        return
    if _SYSTEM["content"] not in told.text:
        yield "the system message does not reach the model; render it where messages[0].role is 'system'"
    encoded, asked = render.encode(chats), render.encode(prompts)
    if any(chat.ids[: len(prompt.ids)] != prompt.ids for chat, prompt in zip(encoded, asked, strict=True)):
        yield (
            "prompt is no prefix of prompt and answer in tokens, so that training would see another context than inference; "
            "let add_generation_prompt write what stands before the answer"
        )
    end = tokenizer.eos_token_id
    texts = [chat.text.rstrip() for chat in chats]
    if others := [text for text in texts if not text.endswith(str(tokenizer.eos_token))]:
        last = others[0].splitlines()[-1][-40:]
        yield (
            f"a chat ends with {last!r} and not with the tokenizer's stop token {tokenizer.eos_token}, so that the model would "
            "not stop; end turns with it, or make the model's folder with `python -m post_training chat-model`"
        )
    elif masked and any(chat.ids[stop - 1] != end for chat in encoded for _, stop in chat.spans):
        yield (
            f"the stop token {tokenizer.eos_token} stands outside the markers, so that the model would not learn to stop; "
            "put it before {% endgeneration %}"
        )
    if masked and any(chat.spans[-1][0] != len(prompt.ids) for chat, prompt in zip(encoded, asked, strict=True) if chat.spans):
        yield "the trained part does not begin where the generation prompt ends; put {% generation %} there"
    if any(one == other == end for chat in encoded for one, other in zip(chat.ids, chat.ids[1:], strict=False)):
        yield f"the stop token {tokenizer.eos_token} stands twice in a row; write it once"
    if THINK in "".join(chat.text for chat in chats):
        yield from _think_token_faults(tokenizer)


def _think_token_faults(tokenizer: Any) -> Iterator[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for tag in (THINK, END_THINK):
        if tag in special:
            yield (
                f"{tag} is a special token, which decoding leaves out, so that no reward or parser would see it; add it with "
                "special=False, as `python -m post_training chat-model` does"
            )
        elif len(tokenizer(tag, add_special_tokens=False)["input_ids"]) != 1:
            yield f"{tag} is no token of the tokenizer; make the model's folder with `python -m post_training chat-model`"


# --- data --------------------------------------------------------------------------------------------------------------------


def data_findings(mixed: Mixed, part: str) -> Iterator[Finding]:
    """What is wrong with the samples of `part` (sources or held_out), as drawn."""
    for source in mixed.sources:
        yield from _source_findings(source, mixed, part)
    drawn = mixed.times > 0
    if mixed.kind != "prompts" and not int(mixed.trained[drawn].sum()):
        yield Finding("refuse", f"data.{part}: no token would be trained; see what was left out")
    elif mixed.kind == "tokens" and (share := mixed.trained_share) < FEW_TRAINED:
        yield Finding("warn", f"data.{part}: {percent(share)} of the tokens are trained; the others are prompts")
    hashes, counts = np.unique(mixed.texts[drawn], return_counts=True)
    if repeated := int(counts.sum() - len(hashes)):
        example = mixed.where(int(np.flatnonzero(mixed.texts == hashes[int(counts.argmax())])[-1]))
        yield Finding(
            "warn", f"data.{part}: {repeated:,} samples stand there more than once, such as one of {example}; remove them"
        )


def _source_findings(source: Source, mixed: Mixed, part: str) -> Iterator[Finding]:
    count = mixed.counts[source.name]
    broken = sum(tally.rows for tally in count.tallies["broken"].values())
    refused = broken > source.max_broken
    allowed = f"max_broken allows {source.max_broken:,} in all" if refused else "left out"
    ends = {"broken": f"; {allowed}", "left_out": "; left out", "noted": ""}
    for group, end in ends.items():
        for kind, tally in count.tallies[group].items():
            severity: Literal["refuse", "warn"] = "refuse" if group == "broken" and refused else "warn"
            yield Finding(severity, f"{kind}: {tally.rows:,} of {count.rows:,} rows; {tally.first}{end}")
    times = mixed.times[mixed.of(source.name)]
    if not times.sum():
        yield Finding(
            "refuse",
            f"dataset {source.name} gives no sample of its {count.total:,} rows; raise its share or data.max_length, or "
            "leave it out",
        )
    elif (passes := float(times.mean())) > MOST_PASSES and part == "sources":
        yield Finding(
            "warn",
            f"dataset {source.name} is gone through {passes:.1f} times in one epoch; beyond {MOST_PASSES} times repeated data "
            "is worth little",
        )


def leaks(trained: Mixed, held_out: Mixed) -> list[Finding]:
    """Held-out samples whose users' turns training has too."""
    seen = np.isin(held_out.prompts, trained.prompts[trained.times > 0])
    if not seen.any():
        return []
    example = held_out.where(int(seen.argmax()))
    return [
        Finding(
            "refuse",
            f"data.held_out: {int(seen.sum()):,} of {len(seen):,} samples have a prompt that is trained on, such as one of "
            f"{example}; take them out of either",
        )
    ]


def text_of(findings: Sequence[Finding]) -> str:
    """The findings as lines, refusals first."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "refuse")
    return "\n".join(f"{'REFUSED' if finding.severity == 'refuse' else 'warning'}: {finding.text}" for finding in ordered)
