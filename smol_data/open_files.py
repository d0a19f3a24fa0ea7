"""Files read by position through a bounded pool of descriptors, again where a read fails; and how long the reads took.

Reading is by `os.pread`: on cold pages one read of a window is about 2.6 times as fast as the page faults of a memory
map, and file systems that refuse to map many files work too. Descriptors are opened at first use and bounded in number, so
that thousands of shards do not meet the limit.
"""

import os
import resource
import time
from collections import OrderedDict
from dataclasses import dataclass

from smol_data.manifest import DataError

_RETRY_SECONDS = (0.1, 1.0, 5.0)  # between the attempts at a read; network storage comes back within seconds or not at all


@dataclass(slots=True)
class ReadStats:
    """What reads took since the last look."""

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0
    """In all, with the waits of reads that were tried again."""
    slowest: float = 0.0
    """Seconds of the longest one."""

    def add(self, size: int, seconds: float) -> None:
        self.reads += 1
        self.bytes += size
        self.seconds += seconds
        if seconds > self.slowest:
            self.slowest = seconds


class OpenFiles:
    """Descriptors by path, opened at first use; the one idle longest is closed when there are too many.

    One pool serves all datasets of a loader. It serves one thread at a time; a forked child may go on reading, since pread
    moves no position.
    """

    def __init__(self, limit: int | None = None) -> None:
        """`limit` is how many stay open: a quarter of the process's own limit (`ulimit -n`), 512 at most, unless given."""
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.limit = limit or max(4, min(512, allowed // 4 if allowed != resource.RLIM_INFINITY else 512))
        self._open: OrderedDict[str, int] = OrderedDict()
        self._stats = ReadStats()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size); fewer when the file ends before.

        A failing read is tried again after a while, on a descriptor opened anew; then DataError names it.
        """
        started = time.perf_counter()
        data = self._read_patiently(path, offset, size)
        self._stats.add(len(data), time.perf_counter() - started)
        return data

    def take_stats(self) -> ReadStats:
        """Of the reads since the last call; from any thread. What a read adds in that very moment may be lost."""
        taken, self._stats = self._stats, ReadStats()
        return taken

    def _read_patiently(self, path: str, offset: int, size: int) -> bytes:
        for seconds in (*_RETRY_SECONDS, None):
            try:
                return self._read(path, offset, size)
            except OSError as error:
                self._forget(path)
                if seconds is None or isinstance(error, FileNotFoundError):
                    raise DataError(
                        f"{path} cannot be read at byte {offset} ({error.strerror or error}); check the storage and start "
                        "again: the run goes on from its last checkpoint"
                    ) from error
                time.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")

    def will_need(self, path: str, offset: int, size: int) -> None:
        """Ask the system to begin reading bytes that will be read soon; does not wait, and a fault shows at the read."""
        try:
            os.posix_fadvise(self._descriptor(path), offset, size, os.POSIX_FADV_WILLNEED)
        except OSError:
            self._forget(path)

    def close(self) -> None:
        """Close all descriptors; they open again when read."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, path: str, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor(path), size, offset)
        while len(data) < size and (more := os.pread(self._descriptor(path), size - len(data), offset + len(data))):
            data += more  # a read may stop early where a file does not, on network storage and above 2 GiB
        return data

    def _descriptor(self, path: str) -> int:
        if (descriptor := self._open.get(path)) is None:
            if len(self._open) >= self.limit:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(path)
        return descriptor

    def _forget(self, path: str) -> None:
        if path in self._open:
            os.close(self._open.pop(path))
