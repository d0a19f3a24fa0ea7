"""What an answer is worth: small functions of one answer, and the section `rewards:` that chooses and weighs them.

    format_reward   the answer has the form that its mode asks for                          1 or 0
    exact, maths    it says what the dataset's answer says                                  True or False
    length_reward   it is no longer than it may be: an interval in which the penalty grows  0 to -1

They read what the model wrote, by smol_answers, reasoning apart from the answer. TRL's own format reward knows no /no_think.
recipes/grpo.py gives them to TRL, synth grades with them.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pydantic import Field, PositiveInt

from smol_answers import END_THINK, THINK, Answer, parse
from smol_config import Section

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s.'-]+[^\W\d_]+)*\.?")
"""A gold answer in words. math-verify would read Paris as a product of five variables, which Pairs is too."""
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is|\s*:)[\s*]*", re.IGNORECASE)


class Reply(NamedTuple):
    """One answer of a model."""

    mode: Literal["think", "no_think"]
    """What was asked for."""
    answer: Answer
    """Its parts."""
    tokens: int
    """That the model wrote, reasoning and stop token included."""


def reply(text: str, mode: Literal["think", "no_think"], tokens: int, opening: str = "") -> Reply:
    """`text` is what the model wrote; `opening` what of the answer stands in the prompt: <think>, or an empty thought."""
    return Reply(mode, parse(opening + text), tokens)


def format_reward(reply: Reply) -> float:
    """/think: a thought that is closed, and an answer after it. /no_think: no thought or an empty one, and an answer."""
    answer = reply.answer
    whole = answer.content and not any(tag in answer.after_reasoning for tag in (THINK, END_THINK))
    return float(bool(whole) and bool(answer.reasoning) == (reply.mode == "think"))


def length_reward(tokens: int, interval: tuple[int, int] | None) -> float:
    """0 up to the interval's start, falling to -1 at its end, as DAPO's soft overlong punishment (arXiv 2503.14476)."""
    if interval is None:
        return 0.0
    start, end = interval
    return -min(1.0, max(0.0, (tokens - start) / (end - start)))


# --- accuracy ----------------------------------------------------------------------------------------------------------------


def exact(gold: str, content: str) -> bool:
    r"""Same words, whatever the case, spaces and the marks around them. Of `content` the last \boxed{} counts, else what
    follows the last "answer is" or "answer:", else all of it."""
    boxed = _BOXED.findall(content)
    said = boxed[-1] if boxed else _ANSWER_IS.split(content)[-1]
    return _plain(said) == _plain(gold)


def _plain(text: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip(" .,;:!?*\"'`")


def maths(gold: str, content: str) -> bool | None:
    r"""Whether math-verify finds both equal; None where it cannot read `gold`. Of `content` a \boxed{} counts first, else the
    last expression. Only in a main thread: math-verify limits its time by a signal."""
    wanted = _gold(gold)
    if not wanted:
        return None
    parse_answer, verify = _math_verify()
    return bool(verify(wanted, parse_answer(content)))


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Callable[[str], list[Any]], Callable[..., Any]]:
    """(parse an answer, compare). Used once here, with time: the first use builds grammars for seconds, and on a busy machine
    that would run into the limit, which stands for: not equal."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, verify
    from math_verify import parse as read

    def parse_answer(content: str, seconds: int = 10) -> list[Any]:
        kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
        return list(read(content, kinds, parsing_timeout=seconds))

    verify(read("\\boxed{1}", parsing_timeout=600), parse_answer("It is $1$.", 600), timeout_seconds=600)
    return parse_answer, verify


@lru_cache(maxsize=1 << 14)
def _gold(text: str) -> list[Any]:
    r"""Parsed. Bare LaTeX wants a box around it: of 2\sqrt{3} math-verify would else see the 2."""
    from math_verify import parse as read

    if not text.strip() or _WORDS.fullmatch(text.strip()):
        return []
    return list(read(text if "$" in text or "\\boxed" in text else f"\\boxed{{{text}}}", parsing_timeout=60))


def is_mathematics(gold: str) -> bool:
    """Whether `maths` can compare with it."""
    return bool(_gold(gold))


# --- which, and how much each counts -----------------------------------------------------------------------------------------

Judge = Callable[[Reply, Mapping[str, Any]], float | None]
"""An answer and its prompt's row -> its reward; None where the reward does not apply."""
_WEIGHT = Field(default=1.0, gt=0, allow_inf_nan=False)


class FormatReward(Section):
    """1 for the form that the mode asks for."""

    weight: float = _WEIGHT


class AccuracyReward(Section):
    """1 for an answer that says what the dataset's says. Prompts without one are not judged by it."""

    weight: float = _WEIGHT
    column: str = "answer"
    """Of the sources, which have it in `keep`."""
    exact: list[str] = Field(default_factory=list)
    """Sources whose answers are compared as text; math-verify compares the others'."""


class LengthReward(Section):
    """0 to -1, by tokens: [start, end] of the interval in which the penalty grows. null: answers of this mode may be long."""

    weight: float = _WEIGHT
    no_think: tuple[PositiveInt, PositiveInt] | None = None
    think: tuple[PositiveInt, PositiveInt] | None = None

    def problems(self) -> list[str]:
        intervals = {"no_think": self.no_think, "think": self.think}
        found = [
            f"{mode}={list(interval)}: the penalty grows from the first number of tokens to the second; make the second larger"
            for mode, interval in intervals.items()
            if interval and interval[0] >= interval[1]
        ]
        if not any(intervals.values()):
            found.append("neither no_think nor think has an interval; set one, or leave length out")
        return found


class Rewards(Section):
    """A reward is chosen by writing its section; answers are compared by the weighted sum."""

    format: FormatReward | None = None
    accuracy: AccuracyReward | None = None
    length: LengthReward | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Of the rewards that are chosen, by name."""
        chosen = {"format": self.format, "accuracy": self.accuracy, "length": self.length}
        return {name: section.weight for name, section in chosen.items() if section}


def judges(chosen: Rewards) -> dict[str, Judge]:
    """The rewards that are chosen, by name. Rows have the kept columns and `dataset`, the name of the prompt's source."""
    accuracy, length = chosen.accuracy, chosen.length

    def judge_accuracy(reply: Reply, row: Mapping[str, Any]) -> float | None:
        assert accuracy
        gold = row.get(accuracy.column)
        if gold is None:
            return None
        same = (exact if row["dataset"] in accuracy.exact else maths)(gold, reply.answer.content)
        return None if same is None else float(same)

    known: dict[str, Judge] = {
        "format": lambda reply, row: format_reward(reply),
        "accuracy": judge_accuracy,
        "length": lambda reply, row: length_reward(reply.tokens, getattr(length, reply.mode)),
    }
    return {name: known[name] for name in chosen.weights}
