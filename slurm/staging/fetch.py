"""Brings missing files to the disk, several at a time; none gets its name before its size and SHA-256 are right."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from zlib import crc32

from slurm.staging.disk import THREADS, Disk
from slurm.staging.needs import StagingError
from slurm.staging.peers import Step
from slurm.staging.sources import Patience, Source
from smol_console import Progress
from smol_data.manifest import FileEntry, Manifest, sha256_of_file

File = tuple[str, FileEntry]
"""Of a dataset: its name, and the file's entry in its manifest."""


class Fetcher:
    """Asks the other nodes of the step first, then the source."""

    def __init__(self, disk: Disk, source: Source, step: Step) -> None:
        self._disk, self._source, self._step = disk, source, step
        self._peers = step.peers()
        self._patience = Patience(step.say)
        self.read = Counter[str]()
        """Files by where they came from: a node, or the source's place."""

    def fetch(self, manifests: Mapping[str, Manifest], missing: Mapping[str, Sequence[FileEntry]]) -> None:
        """Make these datasets whole. Raises Silent when the source did not answer for long, StagingError when it holds other
        bytes than its manifest says."""
        files = [(name, entry) for name, entries in missing.items() for entry in entries]
        begin = int(self._step.share * len(files))  # each node begins elsewhere, and soon has something for the others
        files = files[begin:] + files[:begin]
        left = {name: len(entries) for name, entries in missing.items()}
        for name, entries in missing.items():
            self._disk.begin(name, manifests[name], entries)
            if not entries:
                self._disk.finish(name, manifests[name])
        total = sum(entry.bytes for _, entry in files)
        with Progress(f"{self._step.node}: loading", "B", total) as progress, ThreadPoolExecutor(THREADS) as threads:
            work = {threads.submit(self._fetch, file): file for file in files}
            try:
                for future in as_completed(work):
                    future.result()
                    name, entry = work[future]
                    progress.advance(entry.bytes)
                    left[name] -= 1
                    if not left[name]:
                        self._disk.finish(name, manifests[name])
            except BaseException:
                self._patience.end()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, file: File) -> None:
        """From the first place that has the right bytes; patiently, where the source does not answer."""
        name, entry = file
        partial = self._disk.partial(name, entry)
        if partial.exists() and partial.stat().st_size > entry.bytes:
            partial.unlink()
        self._patience.with_(lambda: self._from_peers(file) or self._from_source(file))

    def _from_peers(self, file: File) -> bool:
        name, entry = file
        partial = self._disk.partial(name, entry)
        # Begin with another peer for each node and file, so that all serve.
        first = crc32(f"{self._step.node}/{name}/{entry.name}".encode()) % max(1, len(self._peers))
        peers = [*self._peers[first:], *self._peers[:first]]
        return any(peer.copy(name, entry, partial) and self._accept(file, peer.node) for peer in peers)

    def _from_source(self, file: File) -> bool:
        name, entry = file
        for _ in range(2):  # the beginning may have been another place's
            self._source.copy(name, entry, self._disk.partial(name, entry))
            if self._accept(file, self._source.place):
                return True
        raise StagingError(
            f"{self._source.place}/{name}/{entry.name} is not what its manifest says ({entry.bytes} bytes with SHA-256 "
            f"{entry.sha256}); copy the dataset there again"
        )

    def _accept(self, file: File, place: str) -> bool:
        """Give the file its name if it is right; otherwise it goes."""
        name, entry = file
        partial = self._disk.partial(name, entry)
        if partial.stat().st_size != entry.bytes or sha256_of_file(partial) != entry.sha256:
            partial.unlink()
            return False
        with partial.open("rb") as written:  # a node that loses power must not keep the name without the bytes
            os.fsync(written.fileno())
        partial.rename(self._disk.root / name / entry.name)
        self.read[place] += 1
        return True
