"""`drills`: small questions that code makes and checks, for the whole path of post-training on a laptop (quickstart_chat.sh).

    How many times is path in path, type, path?      /think: yes, no, yes.      The answer is 2.

    OUT/mid.jsonl        chats with reasoning                          for `mid`
    OUT/sft.jsonl        chats of both modes                           for `sft`
    OUT/pairs.jsonl      right beside wrong answers, both modes        for `preference`
    OUT/prompts.jsonl    questions with their answers                  for `grpo`
    OUT/held_out.jsonl   questions of the evaluation (evaluation/drills)

Held-out questions share nothing with the others but the words themselves: which two words may stand side by side is divided by
a hash, so that no neighbouring pair of one side occurs on the other. A model that answers them has learnt to read the list.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.output import whole_folder
from smol_console import add_command, whole_number

WORDS = (
    "name value file line type list string path code class data index object module function number text time size key state test "
    "error result event thread server message option argument method field item char user group table source target version "
    "request process package command buffer block range byte"
).split()
"""Each one token of the quickstart's tokenizer, which learnt from Python's library: a list of them is regular, and soon read."""
LONGEST = 5
"""Words in a list."""
SYSTEM = "Answer in one sentence."
HELD_OUT_SHARE = 0.2
"""Of the ordered pairs of words."""
HELD_OUT_QUESTIONS = 200
"""Of each mode; an interval of a share is then some 12 % wide."""


class Drill(NamedTuple):
    """A question, how it is thought through, its answer, and one that is wrong."""

    question: str
    reasoning: str
    answer: str
    wrong: str


def is_held_out(first: str, second: str) -> bool:
    """Whether `second` may follow `first` in held-out questions, and in them alone."""
    digest = hashlib.sha256(f"{first} {second}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def draw_drill(draw: random.Random, held_out: bool) -> Drill:
    """One of words from one side of the division."""
    kind = draw.choice(("count", "there", "times"))
    words = _words(draw, draw.randint(2, LONGEST), held_out)
    if kind == "count":
        thought = ", ".join(map(str, range(1, len(words) + 1)))
        return _numbered(draw, f"How many words are in {', '.join(words)}?", thought, len(words))
    asked = draw.choice(words) if draw.random() < 0.5 else draw.choice([word for word in WORDS if word not in words])
    if kind == "times":
        words = [asked if draw.random() < 0.3 else word for word in words]
    found = ["yes" if word == asked else "no" for word in words]
    said, thought = ", ".join(words), ", ".join(found)
    if kind == "times":
        return _numbered(draw, f"How many times is {asked} in {said}?", thought, found.count("yes"))
    answer, wrong = ("yes", "no") if "yes" in found else ("no", "yes")
    return Drill(f"Is {asked} in {said}?", f"{thought}.", answer, wrong)


def _numbered(draw: random.Random, question: str, thought: str, number: int) -> Drill:
    wrong = draw.choice([other for other in (number - 2, number - 1, number + 1, number + 2) if other >= 0])
    return Drill(question, f"{thought}.", str(number), str(wrong))


def _words(draw: random.Random, count: int, held_out: bool) -> list[str]:
    words = [draw.choice(WORDS)]
    while len(words) < count:
        fits = [word for word in WORDS if word not in words and is_held_out(words[-1], word) == held_out]
        if fits:
            words.append(draw.choice(fits))
        else:  # a word whose followers are all on the other side, or used
            words = [draw.choice(WORDS)]
    return words


# --- rows --------------------------------------------------------------------------------------------------------------------


def _user(drill: Drill) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": drill.question}]


def _answer(drill: Drill, content: str, think: bool) -> dict[str, str]:
    return {"role": "assistant", "content": f"The answer is {content}."} | ({"reasoning_content": drill.reasoning} if think else {})


def _chat(drill: Drill, think: bool) -> dict[str, Any]:
    messages = [*_user(drill), _answer(drill, drill.answer, think)]
    return {"messages": messages, "chat_template_kwargs": {"enable_thinking": think}}


def _pair(drill: Drill, think: bool) -> dict[str, Any]:
    """The rejected answer is the wrong word, after the same thought."""
    return {
        "prompt": _user(drill),
        "chosen": [_answer(drill, drill.answer, think)],
        "rejected": [_answer(drill, drill.wrong, think)],
        "chat_template_kwargs": {"enable_thinking": think},
    }


def _prompt(drill: Drill, think: bool) -> dict[str, Any]:
    return {"prompt": _user(drill), "answer": drill.answer, "chat_template_kwargs": {"enable_thinking": think}}


def _held_out(drill: Drill, think: bool) -> dict[str, Any]:
    return {"question": drill.question, "answer": drill.answer}


KINDS: dict[str, tuple[Callable[[Drill, bool], dict[str, Any]], float]] = {
    "mid": (_chat, 1.0),
    "sft": (_chat, 0.5),
    "pairs": (_pair, 0.5),
    "prompts": (_prompt, 0.5),
    "held_out": (_held_out, 0.5),
}
"""File -> what a row is, and the share of rows in /think."""


def rows_of(name: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one file; no question occurs twice in it."""
    draw = random.Random(f"drills {name} {seed}")
    make, think_share = KINDS[name]
    seen: set[str] = set()
    while len(seen) < count:
        drill = draw_drill(draw, held_out=name == "held_out")
        if drill.question not in seen:
            seen.add(drill.question)
            yield make(drill, draw.random() < think_share)


def write(out_dir: Path, count: int, seed: int) -> None:
    """All files into a new folder, `count` rows each but for the held-out ones. Raises UserError where the folder is there."""
    with whole_folder(out_dir) as working:
        for name in KINDS:
            rows = rows_of(name, HELD_OUT_QUESTIONS if name == "held_out" else count, seed)
            with (working / f"{name}.jsonl").open("w", encoding="utf8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"wrote {out_dir}: {count:,} rows each of {', '.join(name for name in KINDS if name != 'held_out')}")


def add_parser(subparsers: Any) -> None:
    """The parser of `drills`."""
    command = add_command(
        subparsers,
        "drills",
        "Questions that code makes and checks, for every recipe: the data of quickstart_chat.sh.",
        "python -m post_training drills runs/chat/drills --rows 6000",
    )
    command.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="new folder of JSON Lines")
    command.add_argument("--rows", type=whole_number(1), default=6000, metavar="N", help="of each file (default 6,000)")
    command.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of the questions (default 0)")
    command.set_defaults(run=lambda options: write(options.out_dir, options.rows, options.seed))
