"""A needle in a haystack at any length: one sentence says what is asked for, three like it what is not.

Lengths are in tokens of the model's tokenizer: lm-eval tells a task which model it is for (`pretrained`). The haystack is made
of plain sentences, so that any length can be made; the needle stands at a depth from 0, the beginning, to 1, the end. The
other needles, at random places, carry the wrong answers: a model that only finds something that was hidden is at chance, 25 %.
As multiple_retrieval of RULER (Hsieh et al. 2024, multi-key), but scored by likelihood, which tells small models apart too.
"""

import random
from typing import Any


def _words(text: str) -> list[str]:
    return text.split(", ")


THINGS = _words("animal, bird, flower, tree, fruit, stone, metal, colour, tool, boat, house, road, river, hill, town, coat")
PLACES = _words(
    "kitchen, garden, office, school, harbour, station, museum, library, market, castle, tower, chapel, forest, valley"
)
SECRETS = _words(
    "tiger, eagle, tulip, maple, cherry, marble, copper, violet, hammer, ferry, cottage, bridge, canyon, meadow, "
    "village, jacket"
)
VERBS = _words("stands, waits, rests, hides, sleeps, shines, turns, falls")
INTRODUCTION = "Somewhere in this text secret words are told.\n"


def questions(
    *, pretrained: str, lengths: list[int], depths: list[float], each: int, seed: int, **_others: Any
) -> dict[str, Any]:
    """Rows {"haystack", "place", "choices", "answer", "length", "depth"}: `each` for every pair of a length and a depth.

    Raises ValueError for a length that has no room for the needles, or that the model does not read.
    """
    from datasets import Dataset
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    read = AutoConfig.from_pretrained(pretrained).max_position_embeddings
    if max(lengths) > read:
        raise ValueError(f"data.lengths: {max(lengths)} tokens are more than the model reads, {read}")
    draw = random.Random(f"needle {seed}")
    rows = []
    for length in lengths:
        for depth in depths:
            for _ in range(each):
                rows.append(_question(draw, tokenizer, length, depth) | {"length": length, "depth": depth})
    return {"test": Dataset.from_list(rows)}


def _question(draw: random.Random, tokenizer: Any, length: int, depth: float) -> dict[str, Any]:
    """One question of at most `length` tokens, its last line and the longest answer counted."""
    places, secrets = draw.sample(PLACES, 4), draw.sample(SECRETS, 4)
    needles = [f"The secret word of the {place} is {secret}." for place, secret in zip(places, secrets, strict=True)]
    tail = f"The secret word of the {places[0]} is {secrets[0]}"
    tokens = [len(tokenizer(f" {sentence}", add_special_tokens=False)["input_ids"]) for sentence in (*needles, tail)]
    room = length - sum(tokens) - len(tokenizer(INTRODUCTION)["input_ids"]) - 2
    if room < 0:
        raise ValueError(f"data.lengths: {length} tokens have no room for the needles; the least is {length - room}")
    hay = _hay(draw, tokenizer, room)
    for needle in needles[1:]:
        hay.insert(draw.randint(0, len(hay)), needle)
    hay.insert(round(depth * len(hay)), needles[0])
    draw.shuffle(order := list(range(4)))
    choices = [secrets[at] for at in order]
    return {"haystack": INTRODUCTION + " ".join(hay), "place": places[0], "choices": choices, "answer": order.index(0)}


def _hay(draw: random.Random, tokenizer: Any, room: int) -> list[str]:
    """Sentences of `room` tokens together, or less by part of one."""
    sentences: list[str] = []
    while True:
        more = [f"The {draw.choice(THINGS)} {draw.choice(VERBS)} near the {draw.choice(THINGS)}." for _ in range(64)]
        encoded = tokenizer([f" {sentence}" for sentence in more], add_special_tokens=False)["input_ids"]
        for sentence, ids in zip(more, encoded, strict=True):
            if len(ids) > room:
                return sentences
            room -= len(ids)
            sentences.append(sentence)
