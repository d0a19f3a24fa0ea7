"""How far long work is."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0


def shown(items: Sequence[Item], label: str) -> Iterator[Item]:
    """The items, with a bar on a terminal; elsewhere with a line every few seconds and one at the end."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label)
        return
    started = told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told > SECONDS_BETWEEN_LINES:
            told = now
            left = (now - started) * (len(items) - done) / done
            print(f"{label}: {done} of {len(items)}, about {left:.0f} s left", flush=True)
    print(f"{label}: {len(items)} in {time.monotonic() - started:.1f} s", flush=True)
