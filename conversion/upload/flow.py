"""The one way to upload: look at what is there, send what is not, finish; after a fault look again.

There is no other retry and no other resume: an attempt begins with what the place holds, whether the attempt before it was
this process's or that of one which was killed. An answer that got lost is found out in the same way, since then nothing is
left to do.
"""

import sys
from collections.abc import Iterator, Sequence
from time import sleep

from conversion import Unreachable
from conversion.upload.local_files import LocalFile, hash_all
from conversion.upload.store import Difference, Listing, Pushed, Store, compare
from smol_console import Progress

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt; attempts in a row that send nothing are bounded by their number."""
LONGEST_WAIT = 300.0
"""Seconds; a place that asks for more patience is taken as one that cannot be reached."""


def upload(files: Sequence[LocalFile], store: Store) -> Pushed:
    """Make the place hold exactly these files, of which it has some, none or all.

    Raises ConversionError when the place refuses, Unreachable when it could not be reached in several attempts. What had
    arrived by then is not sent again by the next upload.
    """
    sent: dict[str, int] = {}
    hashed = changed = False
    failures = 0
    while True:
        before = len(sent)
        try:
            store.prepare()
            listing = store.listing()
            if not hashed:  # which takes long, so a place that refuses has had its say
                hash_all(files)
                hashed = True
            difference = compare(files, listing)
            commit = listing.commit
            if _needed(difference, listing):
                changed = True
                commit = _change(store, difference, sent)
            return Pushed(store.url, commit, len(sent), sum(sent.values()), changed)
        except Unreachable as error:
            failures = 1 if len(sent) > before else failures + 1
            if failures > len(DELAYS) or error.wait > LONGEST_WAIT:
                raise
            delay = max(DELAYS[failures - 1], error.wait)
            print(f"{error}; next attempt in {delay:.0f} s", file=sys.stderr, flush=True)
            sleep(delay)


def _needed(difference: Difference, listing: Listing) -> bool:
    return bool(difference.new or difference.obsolete or not listing.whole)


def _change(store: Store, difference: Difference, sent: dict[str, int]) -> str | None:
    store.begin(difference)
    with Progress("sending", "B", sum(file.size for file in difference.new)) as progress:
        for batch in _batches(difference.new, store.batch_bytes):
            store.send(batch)
            for file in batch:
                sent[file.name] = file.size
                progress.advance(file.size)
    return store.finish()


def _batches(files: Sequence[LocalFile], limit: int) -> Iterator[list[LocalFile]]:
    """The files in their order, in groups of at most `limit` bytes; a larger file is alone."""
    batch: list[LocalFile] = []
    filled = 0
    for file in files:
        if batch and filled + file.size > limit:
            yield batch
            batch, filled = [], 0
        batch.append(file)
        filled += file.size
    if batch:
        yield batch
