"""Do two models compute the same? Logits position by position, top-1 and perplexity, on the same fixed tokens.

`verify` runs each side's forward function over the same rows, one side after the other, so that two large models need not
be in memory together; this file knows nothing of either library.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

TOLERANCE = 1e-4
"""Largest difference of logits up to 10, both sides in fp32 and with the same weights. Above, it grows with the largest
logit, as the rounding of a sum grows with its terms: 36 layers with random weights differ by 2e-5 where logits reach 7.5 and
by 1.1e-4 where they reach 43."""
WINDOW = 512
"""Tokens in a row, at most; a model's sequence length where that is shorter."""

FIXED_TEXT = """\
The lighthouse keeper wrote three lines every evening: the wind, the sea, and whatever he had seen go by. On the fourth of \
March he wrote that the wind was north-west, 7 to 8, that the sea was high, and that nothing had gone by at all. The harbour \
office, 41 kilometres away, kept its own book; when the two were compared in 1912, they agreed on 2,306 of 2,310 days.

def mean(values: list[float]) -> float:
    return sum(values) / len(values)  # a list without values has no mean

Water boils at 100 °C at sea level and at about 93 °C in a town 2,000 metres up, which is why rice takes longer there. \
Le phare s'allume à dix-huit heures. Der Wind dreht auf Süd. El mar está en calma. 1 + 2 + 3 + ... + 100 = 5050.
"""


@dataclass(frozen=True)
class Row:
    """Token ids [t] int64 of one or several documents, one after another."""

    ids: Tensor
    lengths: tuple[int, ...]

    @property
    def documents(self) -> Sequence[Tensor]:
        return self.ids.split(list(self.lengths))


Forward = Callable[[Row], Tensor]
"""A row's logits [t, vocabulary] float32; documents do not see each other."""


@dataclass(frozen=True)
class Side:
    """What one model made of the rows."""

    logits: list[Tensor]
    perplexity: float
    """On the fixed text."""
    text_perplexity: float | None
    """On the text given by the user."""


def fixed_rows(text_ids: Sequence[int], vocab_size: int, sequence_length: int) -> list[Row]:
    """The rows of every comparison: the fixed text, ids from the whole vocabulary twice, and several documents packed."""
    window = max(2, min(sequence_length, WINDOW))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(vocab_size, (window,), generator=generator) for _ in range(3)]
    borders = sorted({0, min(1, window), window // 4, window // 2, window})  # a document of one token among them
    lengths = tuple(end - begin for begin, end in itertools.pairwise(borders))
    text = torch.tensor(text_ids[:window])
    return [Row(text, (len(text),)), Row(drawn[0], (window,)), Row(drawn[1], (window,)), Row(drawn[2], lengths)]


def text_rows(ids: Sequence[int], sequence_length: int) -> list[Row]:
    """Neighbouring windows of a text, each a document; a last one of a single token, which has no target, is left out."""
    window = max(2, min(sequence_length, WINDOW))
    pieces = [torch.tensor(ids[begin : begin + window]) for begin in range(0, len(ids), window)]
    return [Row(piece, (len(piece),)) for piece in pieces if len(piece) > 1]


def measure(forward: Forward, rows: Sequence[Row], text: Sequence[Row]) -> Side:
    """Run one model over the fixed rows (the first is the fixed text) and over the user's text."""
    with torch.no_grad():
        logits = [forward(row).float().cpu() for row in rows]
        fixed = _perplexity(zip(logits[:1], rows[:1], strict=True))
        users = _perplexity((forward(row).float().cpu(), row) for row in text) if text else None
    return Side(logits, fixed, users)


def _perplexity(outputs: Iterator[tuple[Tensor, Row]]) -> float:
    """exp of the mean negative log-likelihood of every token but each row's first; infinite when it overflows."""
    total, targets = 0.0, 0
    for logits, row in outputs:
        total += cross_entropy(logits[:-1], row.ids[1:], reduction="sum").item()
        targets += len(row.ids) - 1
    try:
        return math.exp(total / targets)
    except OverflowError:
        return math.inf


def compare(megatron: Side, huggingface: Side) -> dict[str, Any]:
    """The figures of parity.json; `passed` is false when a difference is above the tolerance or not a number."""
    pairs = list(zip(megatron.logits, huggingface.logits, strict=True))
    difference = max_or_nan([(ours - theirs).abs().max().item() for ours, theirs in pairs])
    largest = max_or_nan([theirs.abs().max().item() for _, theirs in pairs])
    positions = sum(len(ours) for ours, _ in pairs)
    same = sum(int((ours.argmax(-1) == theirs.argmax(-1)).sum()) for ours, theirs in pairs)
    tolerance = TOLERANCE * max(1.0, largest / 10)
    passed = difference <= tolerance  # false for NaN
    figures: dict[str, Any] = {
        "max_logit_difference": _finite(difference),
        "top1_agreement": same / positions,
        "perplexity": {"megatron": _finite(megatron.perplexity), "hf": _finite(huggingface.perplexity)},
        "tolerance": _finite(tolerance),
        "max_logit": _finite(largest),
        "positions": positions,
        "passed": passed,
        "reason": None if passed else f"logits differ by up to {difference:.3g}; the tolerance is {tolerance:.3g}",
    }
    if megatron.text_perplexity is not None and huggingface.text_perplexity is not None:
        texts = {"megatron": _finite(megatron.text_perplexity), "hf": _finite(huggingface.text_perplexity)}
        figures["text_perplexity"] = texts
    return figures


def max_or_nan(values: Sequence[float]) -> float:
    """The largest value, NaN when one is NaN; max() alone would lose it."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
