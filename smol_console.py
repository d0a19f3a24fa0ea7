"""How commands talk: a progress bar on a terminal, plain lines elsewhere; arguments checked with clear sentences; tables;
one sentence and an exit code where the user has something to mend.

The packages with commands import this file; it imports none of them. Progress and errors go to stderr, results to stdout.
"""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from smol_config import UserError

Item = TypeVar("Item")
BAD_INPUT = 2
"""Exit code where the user has something to mend; argparse's too."""
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))

# --- progress --------------------------------------------------------------------------------------------------------------


class Progress:
    """Counts work done. On a terminal a bar; elsewhere a line at most every `every` seconds, fit for log files.

    `total` None means that the amount of work is not known beforehand.
    """

    def __init__(self, label: str, unit: str, total: int | None = None, every: float = 15.0) -> None:
        self.label, self.unit, self.total, self.every = label, unit, total, every
        self.done = 0
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=True)
        self._started = self._spoke = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Add `count` units of work."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._spoke >= self.every:
            self._spoke = time.monotonic()
            print(f"{self.label}: {self._state(time.monotonic() - self._started)}", file=sys.stderr, flush=True)

    def _state(self, seconds: float) -> str:
        """How much is done; the rate and the time left once they can be told."""
        of_total = "" if self.total is None else f" of {self.total:,}"
        state = f"{self.done:,}{of_total} {self.unit}, {seconds:.0f} s"
        if seconds < 1 or not self.done:
            return state
        state += f", {self.done / seconds:,.0f} {self.unit}/s"
        return state if self.total is None else f"{state}, {max(0, self.total - self.done) * seconds / self.done:.0f} s left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def shown(items: Sequence[Item], label: str, unit: str) -> Iterator[Item]:
    """The items, each counted as done when the next one is asked for."""
    with Progress(label, unit, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()


# --- arguments -------------------------------------------------------------------------------------------------------------


def whole_number(at_least: int) -> Callable[[str], int]:
    """An argparse type: an integer not below `at_least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < at_least:
            raise argparse.ArgumentTypeError(f"{value} is too small; give {at_least} or more")
        return value

    return parse


def above_zero(text: str) -> float:
    """An argparse type: a number above 0, written like 3e9 or 0.25."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write it like 3e9 or 0.25") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def byte_size(text: str) -> int:
    """An argparse type: bytes as `500MB`, `2GB` or a plain number; units are powers of 1000."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not match or (size := int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 500MB or 2GB")
    return size


def add_command(subparsers: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A subcommand's parser whose help ends with an example. `subparsers` is what ArgumentParser.add_subparsers returns."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


# --- ends ------------------------------------------------------------------------------------------------------------------


def exit_code(run: Callable[[], int | None], refused: int = BAD_INPUT) -> int:
    """What a command ends with: the code that `run` returns, None being 0, or `refused` once a UserError was told."""
    try:
        return run() or 0
    except UserError as error:
        tell(error)
        return refused


def tell(error: UserError) -> None:
    """One sentence on stderr, without a traceback; of several ranks, one that is not the first gives its number."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    print(f"error: {error}" if rank == "0" else f"error on rank {rank}: {error}", file=sys.stderr)


# --- tables ----------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns: the first `left` to the left, the others to the right. No line ends in spaces."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = zip(row, widths, range(len(widths)), strict=True)
        lines.append("  ".join(cell.ljust(width) if at < left else cell.rjust(width) for cell, width, at in cells).rstrip())
    return "\n".join(lines)


def short(count: float | None) -> str:
    """A count in three digits: 1.30T, 58.6B, 539K, 12; a question mark for one that is not known."""
    if count is None:
        return "?"
    for size, unit in _UNITS:
        if count >= 0.9995 * size:
            return f"{count / size:.{2 if count < 9.995 * size else 1 if count < 99.95 * size else 0}f}{unit}"
    return f"{count:.0f}"


def percent(share: float) -> str:
    """A share as a percentage, with more digits the smaller it is: 72.8 %, 2.70 %, 0.0045 %."""
    digits = 1 if share >= 0.0995 or not share else 2 if share >= 0.0001 else 4
    return f"{100 * share:.{digits}f} %"
