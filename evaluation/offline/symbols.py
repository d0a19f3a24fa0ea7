"""Questions that need no text: sums, and copying a sequence that was seen once. Right answers stand beside near ones."""

import random
from typing import Any


def _words(text: str) -> list[str]:
    return text.split(", ")


WORDS = _words(
    "apple, bridge, candle, desert, engine, feather, garden, hammer, island, jacket, kettle, ladder, market, "
    "needle, orange, pencil, rabbit, saddle, table, umbrella, valley, window, yellow, zebra"
)
SHOTS = 4


def sums(*, questions: int, largest: int, seed: int, **_others: Any) -> dict[str, Any]:
    """Rows {"solved", "sum", "choices", "answer"}: additions below solved ones; the wrong are 1 and 10 off, and a - b."""
    draw = random.Random(f"sums {seed}")

    def pair() -> tuple[int, int]:
        return draw.randint(11, largest), draw.randint(2, 10)

    rows = []
    for _ in range(questions):
        solved = "\n".join(f"{a} + {b} = {a + b}" for a, b in (pair() for _ in range(SHOTS)))
        a, b = pair()
        choices = [a + b, a + b + draw.choice((-1, 1)), a + b + 10, a - b]
        draw.shuffle(choices)
        row = {"solved": solved, "sum": f"{a} + {b}", "choices": list(map(str, choices)), "answer": choices.index(a + b)}
        rows.append(row | {"value": str(a + b)})
    return _dataset(rows)


def copies(*, questions: int, words: int, seed: int, **_others: Any) -> dict[str, Any]:
    """Rows {"shown", "choices", "answer"}: a sequence of words, and again up to its last word, which is asked for; the wrong
    choices are words of the sequence too, so that it takes the order, not the words."""
    draw = random.Random(f"copies {seed}")
    rows = []
    for _ in range(questions):
        sequence = draw.sample(WORDS, words)
        choices = [sequence[-1], *draw.sample(sequence[:-1], 3)]
        draw.shuffle(choices)
        shown = " ".join([*sequence, *sequence[:-1]])
        rows.append({"shown": shown, "choices": choices, "answer": choices.index(sequence[-1])})
    return _dataset(rows)


def _dataset(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}
