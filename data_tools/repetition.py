"""Documents that repeat a short span of tokens over and over: what makes training losses spike, found while tokenising.

The rule is OLMo 2's: a span of 1 to 13 tokens, 32 times or more in a row. Used by shard_writer.py on each batch of documents;
`tokenize --repetition` says what becomes of those found.

A span of p tokens stands c times in a row where x[i] == x[i - p] holds for p * (c - 1) neighbouring i. Text seldom equals
itself at a distance, so the matches are few, and a long run is one whose first and last match lie its length apart.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from smol_config import Section

REASON = "repetition"
"""Under this name the documents are counted in the report."""


class RepetitionRule(Section):
    """What a repetitive document is, and what becomes of it."""

    action: Literal["keep", "flag", "drop"] = "keep"
    """`keep`: counted only; `flag`: marked in the shard's `.flags`; `drop`: left out and counted."""
    period: PositiveInt = 13
    """Longest repeated span, in tokens."""
    count: int = Field(default=32, ge=2)
    """This many times in a row, or more."""


def repetitive_documents(ids: NDArray[Any], ends: NDArray[np.int64], period: int, count: int) -> NDArray[np.bool_]:
    """Which documents hold a span of 1 to `period` tokens at least `count` times in a row; bool [documents].

    `ids` [tokens] are the documents' tokens one after the other, `ends` [documents] their ends in it (exclusive, ascending).
    """
    found = np.zeros(len(ends), dtype=np.bool_)
    for span in range(1, period + 1):
        for document in _candidates(ids, ends, span, span * (count - 1)):
            start = ends[document - 1] if document else 0
            found[document] |= _repeats(ids[start : ends[document]], span, span * (count - 1))
    return found


def _candidates(ids: NDArray[Any], ends: NDArray[np.int64], span: int, run: int) -> NDArray[np.int64]:
    """Documents that may hold `run` matches side by side: where every match of a few, equally far apart, is one.

    Looking at some places first makes the search several times as fast, since in most documents that is all.
    """
    stride = max(1, run // 4)
    matches = ids[span::stride] == ids[:-span:stride]
    together = matches
    for _ in range(run // stride - 1):
        matches = matches[1:]
        together = together[: len(matches)] & matches
    return np.unique(np.searchsorted(ends, np.flatnonzero(together) * stride, side="right"))


def _repeats(ids: NDArray[Any], span: int, run: int) -> bool:
    """Whether one document holds `run` matches side by side."""
    places = np.flatnonzero(ids[span:] == ids[:-span])
    return bool((places[run - 1 :] - places[: max(0, len(places) - run + 1)] == run - 1).any())
