"""Tables in plain text and short numbers, as `inspect`, `stats` and `mixture` print them."""

from collections.abc import Sequence

_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


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
