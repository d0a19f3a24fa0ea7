"""Do two models compute the same? Logits position by position, top-1, greedy continuation and perplexity on the same tokens.

Each side computes its hidden states of all rows, one side after the other. The logits of both then follow for a block of the
vocabulary at a time: logits of 2,000 positions over 128,256 ids, of which only sums and maxima are wanted, would be a
gigabyte a side. This file knows nothing of either library (networks.py does).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest difference of logits up to 10, both sides in fp32 and with the same weights. Above, it grows with the largest
logit, as the rounding of a sum grows with its terms: 36 layers with random weights differ by 2e-5 where logits reach 7.5 and
by 1.1e-4 where they reach 43."""
WINDOW, QUICK_WINDOW = 512, 64
"""Tokens in a row, at most, of verify and of to-hf; a model's sequence length where that is shorter."""
TOKENS_AT_ONCE = 2048
"""Tokens that go through a model together: more of them hold more memory, fewer read a large model's weights more often."""
VOCABULARY_BLOCK = 8192
"""Ids whose logits are in memory together."""
GREEDY_TOKENS = 16
"""Length of the greedy continuations."""

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


HeadRows = Callable[[int, int], Tensor]
"""(first, end) -> the output matrix's rows of these token ids, [end - first, h] float32."""


class Network(Protocol):
    """One of the two models that are compared."""

    vocab_size: int

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """What the output matrix is multiplied with, [t of all rows, h] float32; documents do not see each other."""
        ...

    def head(self) -> HeadRows:
        """The output matrix; what the function holds goes with it."""
        ...


# --- what is compared on ---------------------------------------------------------------------------------------------------


def fixed_rows(text_ids: Sequence[int], vocab_size: int, window: int) -> list[Row]:
    """The rows of every comparison: the fixed text, ids from the whole vocabulary twice, and several documents packed.

    No row is longer than `window` tokens.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(vocab_size, (window,), generator=generator) for _ in range(3)]
    borders = sorted({0, min(1, window), window // 4, window // 2, window})  # a document of one token among them
    lengths = tuple(end - begin for begin, end in itertools.pairwise(borders))
    text = torch.tensor(text_ids[:window])
    return [Row(text, (len(text),)), Row(drawn[0], (window,)), Row(drawn[1], (window,)), Row(drawn[2], lengths)]


def text_rows(ids: Sequence[int], window: int) -> list[Row]:
    """Neighbouring windows of a text, each a document; a last one of a single token, which has no target, is left out."""
    pieces = [torch.tensor(ids[begin : begin + window]) for begin in range(0, len(ids), window)]
    return [Row(piece, (len(piece),)) for piece in pieces if len(piece) > 1]


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that go through a model together."""
    group: list[Row] = []
    for row in rows:
        if group and sum(len(other.ids) for other in [*group, row]) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


# --- logits, a block of the vocabulary at a time ---------------------------------------------------------------------------


class _Tally:
    """What is wanted of one side's logits [t, vocabulary], gathered over blocks of the vocabulary."""

    def __init__(self, targets: Tensor) -> None:
        """`targets` [t]: the ids whose log-probabilities are wanted."""
        self.targets = targets
        self.best, self.best_ids = torch.full(targets.shape, -math.inf), torch.zeros_like(targets)
        self.log_z, self.of_target = torch.full(targets.shape, -math.inf), torch.zeros(targets.shape)

    def add(self, logits: Tensor, first: int) -> None:
        """Take in logits [t, n] of the ids from `first` on."""
        best, ids = logits.max(dim=1)
        is_better = ~(best <= self.best)  # a NaN stays to be seen
        self.best, self.best_ids = torch.where(is_better, best, self.best), torch.where(is_better, ids + first, self.best_ids)
        self.log_z = torch.logaddexp(self.log_z, logits.logsumexp(dim=1))
        here = (self.targets >= first) & (self.targets < first + logits.shape[1])
        self.of_target[here] = logits[here, self.targets[here] - first]

    @property
    def losses(self) -> Tensor:
        """Negative log-likelihoods of the targets, [t]."""
        return self.log_z - self.of_target


@dataclass(frozen=True)
class _Compared:
    """Both sides on the same rows."""

    ours: _Tally
    theirs: _Tally
    difference: float
    """The largest of all logits; NaN when one is NaN."""
    largest: float
    """Magnitude of their logits."""
    is_target: Tensor
    """[t] bool: whether `targets` holds the row's next token; false at the end of each row."""

    @property
    def same(self) -> int:
        """Positions at which both have the same likeliest id."""
        return int((self.ours.best_ids == self.theirs.best_ids).sum())


def _compare_rows(ours: Network, theirs: Network, rows: Sequence[Row], nan_is_equal: bool) -> _Compared:
    ids = torch.cat([row.ids for row in rows])
    ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0) - 1
    is_target = torch.ones(len(ids), dtype=torch.bool).index_fill_(0, ends, False)
    tallies = _Tally(ids.roll(-1)), _Tally(ids.roll(-1))
    difference, largest = torch.zeros(()), torch.zeros(())
    hidden = ours.hidden(rows), theirs.hidden(rows)
    for first, blocks in _logits((ours, theirs), hidden):
        for tally, block in zip(tallies, blocks, strict=True):
            tally.add(block, first)
        if nan_is_equal:
            blocks = [block.masked_fill(blocks[0].isnan() & blocks[1].isnan(), 0.0) for block in blocks]
        difference = torch.maximum(difference, (blocks[0] - blocks[1]).abs().max())  # passes NaN on, as max() does not
        largest = torch.maximum(largest, blocks[1].abs().max())
    return _Compared(*tallies, difference.item(), largest.item(), is_target)


def _logits(networks: Sequence[Network], hidden: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """(first id, each network's logits [t, n] from that id on), over the vocabulary."""
    heads = [network.head() for network in networks]
    size = networks[0].vocab_size
    for first in range(0, size, VOCABULARY_BLOCK):
        end = min(first + VOCABULARY_BLOCK, size)
        yield first, [states @ head(first, end).T for states, head in zip(hidden, heads, strict=True)]


# --- the figures -----------------------------------------------------------------------------------------------------------


def compare(
    ours: Network, theirs: Network, fixed: Sequence[Row], text: Sequence[Row] = (), nan_is_equal: bool = False
) -> dict[str, Any]:
    """The figures of parity.json: `ours` is Megatron-Core's model, `theirs` transformers'.

    `fixed` begins with the fixed text, `text` is the user's. `passed` is false when a logit differs by more than the
    tolerance or is not a number (where `nan_is_equal`, on one side only).
    """
    with torch.no_grad():
        first = _compare_rows(ours, theirs, fixed, nan_is_equal)
        parts = [first, *(_compare_rows(ours, theirs, group, nan_is_equal) for group in _groups(text))]
    difference = _max_or_nan([part.difference for part in parts])
    largest = _max_or_nan([part.largest for part in parts])
    positions = sum(len(part.is_target) for part in parts)
    tolerance = TOLERANCE * max(1.0, largest / 10)
    passed = difference <= tolerance  # false for NaN
    fixed_text = torch.arange(len(first.is_target)) < len(fixed[0].ids)
    figures: dict[str, Any] = {
        "max_logit_difference": _finite(difference),
        "top1_agreement": sum(part.same for part in parts) / positions,
        "perplexity": _perplexities([(first, first.is_target & fixed_text)]),
        "tolerance": _finite(tolerance),
        "max_logit": _finite(largest),
        "positions": positions,
        "passed": passed,
        "reason": None if passed else f"logits differ by up to {difference:.3g}; the tolerance is {tolerance:.3g}",
    }
    if text:
        figures["text_perplexity"] = _perplexities([(part, part.is_target) for part in parts[1:]])
    return figures


def compare_greedy(ours: Network, theirs: Network, prompts: Sequence[Row]) -> dict[str, int]:
    """Both sides continue the prompts greedily: how many tokens, and how many both choose after the same beginning.

    Their model continues; ours is asked at each of the tokens whether it would have chosen it.
    """
    with torch.no_grad():
        texts = [row.ids for row in prompts]
        for _ in range(GREEDY_TOKENS):
            chosen = _likeliest(theirs, texts)
            ends = torch.tensor([len(ids) for ids in texts]).cumsum(0) - 1
            texts = [torch.cat([ids, chosen[end : end + 1]]) for ids, end in zip(texts, ends.tolist(), strict=True)]
        chosen = _likeliest(ours, texts)
        begins = itertools.accumulate((len(ids) for ids in texts), initial=0)
        agreed = 0
        for ids, begin in zip(texts, begins, strict=False):
            answers = chosen[begin : begin + len(ids) - 1]
            agreed += int((answers[-GREEDY_TOKENS:] == ids[-GREEDY_TOKENS:]).sum())
    return {"tokens": GREEDY_TOKENS * len(texts), "agreed": agreed}


def _likeliest(network: Network, texts: Sequence[Tensor]) -> Tensor:
    """The likeliest next id at every position of the texts, [t of all]."""
    rows = [Row(ids, (len(ids),)) for ids in texts]
    tally = _Tally(torch.zeros(sum(len(ids) for ids in texts), dtype=torch.long))
    for first, (block,) in _logits([network], [network.hidden(rows)]):
        tally.add(block, first)
    return tally.best_ids


def _perplexities(parts: Sequence[tuple[_Compared, Tensor]]) -> dict[str, float | None]:
    """exp of the mean negative log-likelihood over the positions that are marked, of both sides."""
    ours = torch.cat([part.ours.losses[marked] for part, marked in parts])
    theirs = torch.cat([part.theirs.losses[marked] for part, marked in parts])
    return {"megatron": _perplexity(ours), "hf": _perplexity(theirs)}


def _perplexity(losses: Tensor) -> float | None:
    try:
        return _finite(math.exp(losses.double().mean().item()))
    except OverflowError:
        return None


def _max_or_nan(values: Sequence[float]) -> float:
    """The largest value, NaN when one is NaN; max() alone would lose it."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
