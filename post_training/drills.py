"""`drills`: small questions that code makes and checks, for the whole path of post-training on a laptop (quickstart_chat.sh).

    How many words are in path, function, type?      /think: 1, 2, 3.      The answer is 3.

    OUT/mid.jsonl        chats with reasoning                                   for `mid`
    OUT/sft.jsonl        chats of both modes, by a teacher with faults          for `sft`
    OUT/pairs.jsonl      right and short beside wrong or rambling answers       for `preference`
    OUT/prompts.jsonl    questions with their answers                           for `grpo`
    OUT/held_out.jsonl   questions of the evaluation (evaluation/drills)

The teacher's faults are those of real data, and what the later stages are for: some answers are wrong, and in /no_think some
think aloud, as SmolLM3's did before its rewards forbade it (Smol Training Playbook, "GRPO with verifiable rewards").

Held-out questions share nothing with the others but the words themselves: which two words may stand side by side is divided by
a hash, so that no neighbouring pair of one side occurs on the other. A model that answers them has learnt to read the list.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.output import whole_folder
from smol_console import add_command, whole_number

WORDS = str.split(
    "name value file line type list string path code class data index object module function number text time size "
    "key state test error result event thread server message option argument method field item char user group table "
    "source target version request process package command buffer block range byte"
)
"""Each one token of the quickstart's tokenizer, which learnt from Python's library: small models read them soon."""
LONGEST = 7
"""Words in a list; the shortest has two."""
SYSTEM = "Answer in one sentence."
HELD_OUT_SHARE = 0.2
"""Of the ordered pairs of words."""
HELD_OUT_QUESTIONS = 200
"""An interval of a share is then some 12 % wide."""
WRONG_SHARE = 0.25
"""Of the teacher's answers."""
RAMBLING_SHARE = 0.4
"""Of its answers in /no_think."""


class Drill(NamedTuple):
    """A question, its answer, and one that is wrong."""

    question: str
    answer: int
    wrong: int


def is_held_out(first: str, second: str) -> bool:
    """Whether `second` may follow `first` in held-out questions, and in them alone."""
    digest = hashlib.sha256(f"{first} {second}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def draw_drill(draw: random.Random, held_out: bool) -> Drill:
    """One of words from one side of the division."""
    words = _words(draw, draw.randint(2, LONGEST), held_out)
    number = len(words)
    wrong = draw.choice([other for other in (number - 2, number - 1, number + 1, number + 2) if other > 0])
    return Drill(f"How many words are in {', '.join(words)}?", number, wrong)


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


def _answer(number: int, think: bool, aloud: bool = False) -> dict[str, str]:
    """The assistant's turn, thought through as far as the number that it says. `aloud`: with the thought in the answer."""
    said, thought = f"The answer is {number}.", f"{', '.join(map(str, range(1, number + 1)))}."
    if think:
        return {"role": "assistant", "content": said, "reasoning_content": thought}
    return {"role": "assistant", "content": f"{thought} {said}" if aloud else said}


def _chat(draw: random.Random, drill: Drill, think: bool) -> dict[str, Any]:
    """What the model is to learn to do."""
    messages = [*_user(drill), _answer(drill.answer, think)]
    return {"messages": messages, "chat_template_kwargs": {"enable_thinking": think}}


def _taught(draw: random.Random, drill: Drill, think: bool) -> dict[str, Any]:
    """The same by the teacher with faults."""
    number = drill.wrong if draw.random() < WRONG_SHARE else drill.answer
    messages = [*_user(drill), _answer(number, think, aloud=draw.random() < RAMBLING_SHARE)]
    return {"messages": messages, "chat_template_kwargs": {"enable_thinking": think}}


def _pair(draw: random.Random, drill: Drill, think: bool) -> dict[str, Any]:
    """The rejected answer is wrong, or in /no_think right but thought aloud."""
    rambles = not think and draw.random() < 0.5
    rejected = _answer(drill.answer if rambles else drill.wrong, think, aloud=rambles)
    return {
        "prompt": _user(drill),
        "chosen": [_answer(drill.answer, think)],
        "rejected": [rejected],
        "chat_template_kwargs": {"enable_thinking": think},
    }


def _prompt(draw: random.Random, drill: Drill, think: bool) -> dict[str, Any]:
    return {"prompt": _user(drill), "answer": str(drill.answer), "chat_template_kwargs": {"enable_thinking": think}}


def _held_out(draw: random.Random, drill: Drill, think: bool) -> dict[str, Any]:
    return {"question": drill.question, "answer": str(drill.answer)}


KINDS: dict[str, tuple[Callable[[random.Random, Drill, bool], dict[str, Any]], float]] = {
    "mid": (_chat, 1.0),
    "sft": (_taught, 0.5),
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
            yield make(draw, drill, draw.random() < think_share)


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
