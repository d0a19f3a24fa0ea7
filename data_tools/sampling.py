"""A bounded sample of a text of any size, and the seeded number in [0, 1) that every document has.

Used by `fertility` and `train-tokenizer --config` (a sample), and by `prepare` (which documents are held out). A document's
number depends on its text, the seed and the purpose alone: not on files, order or workers, and what is held out is no more
and no less likely to be sampled than the rest.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from data_tools.inputs import Inputs
from smol_console import Progress

READ_AHEAD = 8  # bytes on disk that are read for a byte of the sample; so a sample of 100 MB never reads a terabyte


def position(text: bytes, purpose: str, seed: int) -> float:
    """The number of a document, uniform in [0, 1). Equal texts have equal numbers. `text` in UTF-8."""
    return _number(text, purpose, seed) / 2**64


def sample_texts(
    inputs: Inputs, budget: int, seed: int = 0, keeps: Callable[[dict[str, Any]], bool] | None = None
) -> Iterator[str]:
    """`budget` bytes of the inputs' text (UTF-8), or all of it: whole documents in random order, the last one cut.

    The documents of the smallest numbers are taken, which is a uniform sample whatever the files' order. Of inputs much
    larger than the sample only every k-th file is read, chosen so that READ_AHEAD bytes on disk are read for one of the
    sample; a file is read whole. `keeps` tells by a document's metadata (`inputs.columns`) whether it counts. Memory: the
    budget and one document.
    """
    files = inputs.files[:: max(1, inputs.bytes // (READ_AHEAD * budget))]
    kept: list[tuple[int, bytes]] = []  # a heap with the largest number on top (negated)
    total, limit = 0, 2**64
    with Progress("reading", "documents") as progress:
        for document in replace(inputs, files=files).reader().run():
            progress.advance()
            if keeps is not None and not keeps(document.metadata):
                continue
            data = document.text.encode()
            number = _number(data, "sample", seed)
            if number >= limit:
                continue
            heapq.heappush(kept, (-number, data))
            total += len(data)
            while total - len(kept[0][1]) >= budget:
                number, data = heapq.heappop(kept)
                total -= len(data)
                limit = -number  # a later document beyond this one would not be in the sample either
    left = budget
    for _, data in sorted(kept, reverse=True):
        yield data[:left].decode(errors="ignore")
        left -= len(data)


def _number(text: bytes, purpose: str, seed: int) -> int:
    key = f"{purpose}:{seed}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=key).digest(), "big")
