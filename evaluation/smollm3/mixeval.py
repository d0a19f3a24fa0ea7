"""MixEval-Hard (Ni et al. 2024, arXiv 2406.06565): what is asked and expected; a judge scores what is answered."""

from string import ascii_uppercase
from typing import Any


def listed(row: dict[str, Any]) -> str:
    """The question with its options by letters."""
    before = f"{row['context'].strip()}\n\n" if row.get("context") else ""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, row["options"], strict=False))
    return f"{before}{row['prompt'].strip()}\n{options}\nAnswer with the letter of the right option."


def right(row: dict[str, Any]) -> str:
    """The right option as `listed` shows it; `target` holds its place."""
    place = int(row["target"][0])
    return f"{ascii_uppercase[place]}. {row['options'][place]}"


def answered(_row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """Whether there is an answer after the reasoning."""
    return {"answered": float(bool(responses[0].strip()))}
