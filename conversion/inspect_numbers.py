"""What `inspect` says of one tensor, and of two that should be the same: sums in fp64, a few million elements at a time.

Sums are over finite elements; NaN and Inf are counted beside them. Those of several tensors add up to those of a kind.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from conversion.weights import same_bits

CHUNK = 1 << 22
"""Elements that are looked at at a time: 32 MB in fp64."""


@dataclass(frozen=True)
class Stats:
    """Sums over a tensor's elements."""

    elements: int = 0
    nan: int = 0
    inf: int = 0
    total: float = 0.0
    squares: float = 0.0
    absmax: float = 0.0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.elements + other.elements,
            self.nan + other.nan,
            self.inf + other.inf,
            self.total + other.total,
            self.squares + other.squares,
            max(self.absmax, other.absmax),
        )

    @property
    def finite(self) -> int:
        return self.elements - self.nan - self.inf

    @property
    def norm(self) -> float:
        """L2."""
        return math.sqrt(self.squares)

    @property
    def mean(self) -> float:
        return self.total / max(self.finite, 1)

    @property
    def std(self) -> float:
        """Of the elements themselves: divided by their number."""
        return math.sqrt(max(self.squares / max(self.finite, 1) - self.mean**2, 0.0))

    def as_json(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("norm", "mean", "std", "absmax", "nan", "inf")}


@dataclass(frozen=True)
class Difference:
    """How tensor b differs from tensor a of the same shape; `largest` and the sums leave out pairs that are not finite."""

    equal: bool = True
    """Bit for bit, in one dtype."""
    largest: float = 0.0
    """max |a - b|."""
    squares: float = 0.0
    """Of a - b."""
    reference: float = 0.0
    """Squares of a."""
    not_finite: int = 0
    """Pairs with a NaN or an Inf in one of them or in both."""

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.equal and other.equal,
            max(self.largest, other.largest),
            self.squares + other.squares,
            self.reference + other.reference,
            self.not_finite + other.not_finite,
        )

    @property
    def relative(self) -> float:
        """||a - b|| / ||a||; infinite where a is zero and b is not."""
        if not self.squares:
            return 0.0
        return math.sqrt(self.squares / self.reference) if self.reference else math.inf

    def as_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "max_difference": self.largest,
            "relative_difference": self.relative,
            "not_finite": self.not_finite,
        }


def stats(tensor: Tensor) -> Stats:
    """The sums of one tensor, of any dtype and shape."""
    return sum(map(_stats, _chunks(tensor)), Stats())


def difference(a: Tensor, b: Tensor) -> Difference:
    """How two tensors of one shape differ, whatever their dtypes."""
    pairs = zip(_chunks(a), _chunks(b), strict=True)
    return sum((_difference(*pair) for pair in pairs), Difference(equal=same_bits(a, b)))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in fp64, [at most CHUNK] each; none of a tensor without elements."""
    if tensor.numel():
        for chunk in tensor.reshape(-1).split(CHUNK):
            yield chunk.double()


def _stats(chunk: Tensor) -> Stats:
    squares, nan, inf = float(chunk.dot(chunk)), 0, 0
    elements = len(chunk)
    if not math.isfinite(squares):  # looked at once more only where that is needed
        nan, inf = int(chunk.isnan().sum()), int(chunk.isinf().sum())
        chunk = chunk[chunk.isfinite()]
        squares = float(chunk.dot(chunk))
    return Stats(elements, nan, inf, float(chunk.sum()), squares, _absmax(chunk))


def _difference(a: Tensor, b: Tensor) -> Difference:
    apart, left_out = a - b, 0
    squares, reference = float(apart.dot(apart)), float(a.dot(a))
    if not math.isfinite(squares + reference):
        finite = a.isfinite() & b.isfinite()
        left_out = len(a) - int(finite.sum())
        a, apart = a[finite], apart[finite]
        squares, reference = float(apart.dot(apart)), float(a.dot(a))
    return Difference(True, _absmax(apart), squares, reference, left_out)


def _absmax(chunk: Tensor) -> float:
    return max(abs(float(end)) for end in chunk.aminmax()) if len(chunk) else 0.0
