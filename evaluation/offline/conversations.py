"""ThinkFollow: does the model switch between reasoning and not reasoning as each turn of a conversation asks?

After the evaluation that SmolLM3's authors describe in the Smol Training Playbook. A conversation has one to four turns of the
user, each ending with /think or /no_think; the earlier ones are answered as they asked, the last is for the model. `score`
reads its whole response: reasoning between <think> and </think> that is not empty, or none. The template's default mode is
rendered (mode chat), so that nothing but the conversation says what is wanted.

Conversation is the lm-eval task: lm-eval itself has one user turn, after examples that are drawn, and no history.
"""

import random
import re
from collections.abc import Callable
from typing import Any

from lm_eval.api.task import ConfigurableTask

FACTS = {
    "What is the capital of France?": ("Paris is the seat of government.", "Paris."),
    "How many days does a week have?": ("Monday to Sunday, that makes seven.", "Seven."),
    "Which is larger, 9 or 11?": ("9 is two less than 11.", "11."),
    "What colour do blue and yellow make?": ("Mixing these paints gives green.", "Green."),
    "How many legs does a spider have?": ("Spiders are arachnids, with eight legs.", "Eight."),
    "What is frozen water called?": ("Below zero degrees water becomes solid.", "Ice."),
    "What is 6 times 7?": ("6 times 7 is 42.", "42."),
    "Which month follows March?": ("The order is March, April, May.", "April."),
}


class Conversation(ConfigurableTask):
    """A task whose rows are conversations, in a column "messages"; for models with a chat template."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(
        self, doc: dict[str, Any], num_fewshot: int, *, chat_template: Callable[..., str] | None = None, **_others: Any
    ) -> str:
        """The rendered conversation, up to where the model begins. Raises ValueError without a template."""
        if chat_template is None:
            raise ValueError(f"{self.task_name} needs a chat template; run it with --apply_chat_template")
        return chat_template(list(doc["messages"]), add_generation_prompt=True)


def think_follow(*, questions: int, seed: int, **_others: Any) -> dict[str, Any]:
    """Rows {"messages", "wanted", "turns"}: as many of each number of turns, half of all last turns asking for reasoning."""
    from datasets import Dataset

    draw = random.Random(f"think follow {seed}")
    rows = []
    for number in range(questions):
        turns, messages = 1 + number // 2 % 4, []
        modes = [draw.choice(("think", "no_think")) for _ in range(turns - 1)] + ["think" if number % 2 else "no_think"]
        for mode, question in zip(modes, draw.sample(sorted(FACTS), turns), strict=True):
            reasoning, answer = FACTS[question]
            thought = f"<think>\n{reasoning}\n</think>\n" if mode == "think" else "<think>\n\n</think>\n"
            messages.append({"role": "user", "content": f"{question} /{mode}"})
            messages.append({"role": "assistant", "content": thought + answer})
        rows.append({"messages": messages[:-1], "wanted": modes[-1], "turns": turns})
    return {"test": Dataset.from_list(rows)}


def score(row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """Whether the response reasons as the last turn asks, and whether it comes to an answer after it."""
    before, begun, inside = responses[0].partition("<think>")
    reasoning, ended, answer = inside.partition("</think>") if begun else ("", "", before)
    reasons = bool(re.search(r"\w", reasoning))
    answered = bool(answer.strip()) and bool(ended or not begun)
    return {"mode_followed": float(reasons == (row["wanted"] == "think")), "answered": float(answered)}
